"""From the command line, through Hydra, to a checked Trial."""
