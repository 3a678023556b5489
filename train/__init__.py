"""Trains the policy on scored groups: advantages, packing, losses, the loop, checkpoints, export."""
