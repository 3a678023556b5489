"""Where calls are sampled: the pool of vLLM workers, a chat endpoint, HTTP, routing, restarts."""
