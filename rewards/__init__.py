"""Verifiers and reward shaping: text in, verdict out; knows nothing of models or torch."""
