"""Measures what memory-saving techniques for large language models really save, and what they cost."""

__version__ = "0.1.0"
