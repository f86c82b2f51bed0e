"""The results store: the rows' schema, their files, and folders on disks and in buckets."""
