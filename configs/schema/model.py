"""The policy that a run starts from."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from configs.schema.checks import at_least, choice

RECOMPUTATIONS = ("none", "attention", "full")
"""Values of ``model.gradient_checkpointing``, the fastest first and the one with the least memory last."""

TEMPLATE_ARGUMENTS = (
    "messages",
    "conversation",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)
"""Arguments of ``apply_chat_template`` that decide what a prompt is; no option sets them."""


@dataclass(kw_only=True)
class ModelConfig:
    """The policy that a run starts from."""

    path: str = MISSING
    """A folder in Hugging Face format, or the name of a model on the hub."""

    dtype: str = "bfloat16"
    """Precision of the trainer's weights: float32 or bfloat16."""

    gradient_checkpointing: str = "none"
    """Activations that the backward pass recomputes instead of keeping them. none. attention: those of each
    layer's attention, without the MLP's. full: all within a layer; least memory, about a third more time.
    true and false are read as full and none."""

    attention: str = "auto"
    """Attention of prompts that completions share. shared_prompt: one call a completion, the reference.
    varlen: two FlashAttention calls a layer (bfloat16 on a GPU). flex: one FlexAttention call a layer (GPU).
    auto: shared_prompt on a CPU; varlen on a GPU in bfloat16, if it agrees with the reference there."""

    use_liger_kernel: str = "auto"
    """Fused RMSNorm, rotary positions and SwiGLU of liger-kernel. true, false, or auto: on a GPU, if the
    package is installed (extra gpu) and knows the model."""

    cast_lm_head_to_fp32: bool = False
    """Keep the logits of (bfloat16) weights in float32, in the trainer and in local workers; ScaleRL reports
    that this matters."""

    lora_r: int = 0
    """Rank of LoRA adapters. If above 0, only they are trained; 0: train all weights."""

    lora_alpha: int = 32
    """Scale of the adapters: lora_alpha / lora_r."""

    lora_target_modules: list[str] = field(default_factory=list)
    """Names of the layers with adapters, e.g. [q_proj, v_proj]. Empty: all linear layers but the LM head."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template, e.g. {enable_thinking: false}: wherever a prompt is made."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Leave it off for models you did not write."""

    def __post_init__(self) -> None:
        choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        choice("model.attention", self.attention, ("auto", "shared_prompt", "flex", "varlen"))
        # Hydra reads true and false as booleans.
        recomputes = self.gradient_checkpointing.lower()
        self.gradient_checkpointing = {"true": "full", "false": "none"}.get(recomputes, recomputes)
        choice("model.gradient_checkpointing", self.gradient_checkpointing, RECOMPUTATIONS)
        self.use_liger_kernel = self.use_liger_kernel.lower()
        choice("model.use_liger_kernel", self.use_liger_kernel, ("auto", "true", "false"))
        at_least("model.lora_r", self.lora_r, 0)
        at_least("model.lora_alpha", self.lora_alpha, 1)
        for name in self.chat_template_kwargs:
            if name in TEMPLATE_ARGUMENTS:
                raise ValueError(
                    f"model.chat_template_kwargs holds {name}, which every prompt sets itself. It is for the "
                    "variables of the model's chat template, e.g. enable_thinking."
                )
