"""Buffers that a checkpoint does not hold, such as rotary frequencies, computed outside ZeRO-3's loading."""

from copy import deepcopy

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights


def recompute_buffers(model: PreTrainedModel) -> None:
    """Replaces the non-persistent float buffers of a loaded model by those of a newly constructed one.

    Under ZeRO-3 a model with bfloat16 weights is constructed while DeepSpeed casts every new float tensor to
    bfloat16. Frequencies of rotary positions are then off by up to 0.4 %: at position 16,000 a quarter of
    them by more than half a radian, so the trainer would compute other log-probs than the sampler. Elsewhere
    both buffers are equal.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)  # as ``from_pretrained`` does: some buffers take their dtype from it
    try:
        # Without weights: the parameters are never initialized and go to the meta device one by one.
        with no_init_weights(), init_empty_weights(include_buffers=False):
            fresh = type(model)(deepcopy(model.config))
    finally:
        torch.set_default_dtype(default)
    for name, module in model.named_modules():
        source = fresh.get_submodule(name)
        for key in module._non_persistent_buffers_set:
            buffer, value = module.get_buffer(key), source.get_buffer(key)
            if value.is_floating_point():
                module.register_buffer(key, value.to(buffer.device), persistent=False)
