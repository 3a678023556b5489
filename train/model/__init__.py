"""The policy, the critic and the reference: backbones, attention over shared prompts, log-probs, LoRA."""
