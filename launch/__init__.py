"""Command lines and process trees: accelerate and Slurm files, jobs, sweeps, plans."""
