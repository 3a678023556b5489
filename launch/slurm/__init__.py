"""A Slurm batch script from a config: ``python -m launch.slurm``."""
