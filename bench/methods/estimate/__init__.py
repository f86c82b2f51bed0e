"""method=estimate: memory by arithmetic alone, in microseconds, by one of two formulas."""
