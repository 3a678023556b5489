"""Scored groups in, a better policy out: advantages, packing, losses, the loop, checkpoints, export."""
