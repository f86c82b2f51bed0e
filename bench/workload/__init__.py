"""What is run: a model, its weights, the techniques, one training step or generation. Knows no clock."""
