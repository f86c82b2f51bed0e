"""Hydra's launchers for other machines: Slurm and Ray."""
