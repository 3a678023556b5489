"""The tiny policy of the demo."""

from dataclasses import dataclass

from configs.schema.checks import share


@dataclass(kw_only=True)
class ColdStartConfig:
    """``python -m train.coldstart``: size, training data and training of the demo's tiny policy."""

    hidden_size: int = 128
    """Width of the model; like the next ones, as in Qwen3Config of transformers."""
    num_hidden_layers: int = 4
    """Layers."""
    num_attention_heads: int = 4
    """Attention heads, of size 32 with the default hidden_size."""
    num_key_value_heads: int = 2
    """Key and value heads."""
    intermediate_size: int = 384
    """Width of the MLP."""
    rope_theta: float = 10000.0
    """Base of the rotary positions."""
    initializer_range: float = 0.04
    """Standard deviation of the initial weights; 0.02 suits wider models and learns slower here."""
    vocab_size: int = 1024
    """Largest vocabulary of the tokenizer; its training stops earlier when no frequent pair is left."""

    solve_share: float = 0.42
    """Share of examples that answer the plain problem."""
    refine_share: float = 0.52
    """Share of examples that answer from a workspace; the rest is half summaries, half verifications."""
    glance_share: float = 0.5
    """Share of the solve examples that answer without work; initially the policy does so as often."""
    copy_share: float = 0.5
    """Share of the refine examples that copy the workspace's first answer unchecked."""
    solve_again_share: float = 0.0
    """Share of the refine examples that work the problem out again; those left use the workspace."""
    summary_share: float = 0.06
    """Share of the refine examples whose workspace is a summary instead of drafts."""

    max_steps: int = 1200
    """Optimizer steps of the SFT."""
    per_device_train_batch_size: int = 32
    """Examples of a step."""
    learning_rate: float = 3e-3
    """Highest learning rate of the cosine schedule."""
    warmup_steps: int = 40
    """Steps of linear warm-up."""
    adam_beta2: float = 0.95
    """Decay of AdamW's mean of the squared gradient."""
    max_grad_norm: float = 1.0
    """Gradient clipping by the global norm."""
    seed: int = 0
    """Seed of weights and examples."""

    def __post_init__(self) -> None:
        for name in ("solve", "refine", "glance", "copy", "solve_again", "summary"):
            share(f"coldstart.{name}_share", getattr(self, f"{name}_share"))
        if self.solve_share + self.refine_share > 1:
            raise ValueError(
                f"coldstart.solve_share and coldstart.refine_share are {self.solve_share} and "
                f"{self.refine_share}; together they must not exceed 1."
            )
        if self.copy_share + self.solve_again_share > 1:
            raise ValueError(
                f"coldstart.copy_share and coldstart.solve_again_share are {self.copy_share} and "
                f"{self.solve_again_share}; together they must not exceed 1."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"coldstart.num_key_value_heads is {self.num_key_value_heads}; it must divide "
                f"coldstart.num_attention_heads, which is {self.num_attention_heads}."
            )
        least = 5 + 256
        if self.vocab_size < least:
            raise ValueError(
                f"coldstart.vocab_size must be at least {least} (every byte and the special tokens), "
                f"got {self.vocab_size}."
            )
