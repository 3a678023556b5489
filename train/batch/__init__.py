"""Rows, how they are packed into micro-batches, and the tensors of a micro-batch."""
