"""Weights from the trainer to the workers: through a directory or over a process group."""
