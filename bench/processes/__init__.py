"""A fresh process for each rank of a trial, and the verdict on how it ended."""
