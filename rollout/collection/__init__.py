"""Turns problems into scored groups for training: problem stream, groups, batches ahead, replay."""
