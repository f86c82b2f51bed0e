"""measure, simulate, estimate: three ways to fill the same columns."""
