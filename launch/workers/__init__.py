"""vLLM workers for a trainer elsewhere: ``python -m launch.workers``."""
