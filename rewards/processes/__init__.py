"""Verifier processes that can be killed when an answer takes too long."""
