"""Writes a Slurm batch script for a config: ``python -m launch.slurm``."""
