"""Before a trial runs: what it will need, whether there is time for it, and which one is next."""
