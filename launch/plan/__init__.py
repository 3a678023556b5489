"""``python -m launch.plan``: what a run needs and takes, without running it."""
