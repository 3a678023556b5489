"""The policy that a run starts from."""

from dataclasses import dataclass

from omegaconf import MISSING

from configs.schema.checks import choice


@dataclass(kw_only=True)
class ModelConfig:
    """The policy that a run starts from."""

    path: str = MISSING
    """An HF folder, or the name of a model on the hub."""

    dtype: str = "bfloat16"
    """Precision of the trainer's weights: float32 or bfloat16."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Leave it off for models you did not write."""

    def __post_init__(self) -> None:
        choice("model.dtype", self.dtype, ("float32", "bfloat16"))
