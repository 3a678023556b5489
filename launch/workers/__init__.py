"""vLLM workers for a trainer in another process or machine: ``python -m launch.workers``."""
