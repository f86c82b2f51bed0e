"""The loops that take steps: our own, generation, and transformers' Trainer."""
