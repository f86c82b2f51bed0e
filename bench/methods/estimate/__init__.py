"""method=estimate: memory by closed-form arithmetic, in microseconds."""
