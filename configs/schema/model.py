"""The policy that a run starts from."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.checks import at_least, choice


@dataclass(kw_only=True)
class ModelConfig:
    """The policy that a run starts from."""

    path: str = MISSING
    """A folder in Hugging Face format, or the name of a model on the hub."""

    dtype: str = "bfloat16"
    """Precision of the trainer's weights: float32 or bfloat16."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    cast_lm_head_to_fp32: bool = False
    """Compute logits in float32 from the trainer's (bfloat16) weights; ScaleRL reports that this matters."""

    lora_r: int = 0
    """Rank of LoRA adapters. If above 0, only they are trained; 0: train all weights."""

    lora_alpha: int = 32
    """Scale of the adapters: lora_alpha / lora_r."""

    lora_target_modules: list[str] = field(default_factory=list)
    """Names of the layers with adapters, e.g. [q_proj, v_proj]. Empty: all linear layers but the LM head."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Leave it off for models you did not write."""

    def __post_init__(self) -> None:
        choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        at_least("model.lora_r", self.lora_r, 0)
        at_least("model.lora_alpha", self.lora_alpha, 1)
