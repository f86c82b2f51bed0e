"""What fits on a card, and what to pick: combinations, their largest micro-batch, the table."""
