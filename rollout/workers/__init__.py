"""vLLM workers on this machine: one worker, the fleet, and the guard that ends a process tree."""
