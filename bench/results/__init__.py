"""Rows: their schema, files, folders and buckets; written atomically, readable for years."""
