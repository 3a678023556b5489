"""``python -m launch.plan``: estimates memory and time of a run without running it."""
