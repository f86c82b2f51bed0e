"""A day with a GPU: what to run, how it ended, and whether its rows can become a reference."""
