"""Predictions held against measurements: of this project's grid, of any rows, of every architecture."""
