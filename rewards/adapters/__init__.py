"""The scorer as the reward function of other trainers. No trainer is imported."""
