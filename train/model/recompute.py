"""Activations that are recomputed in the backward pass instead of kept (``model.gradient_checkpointing``)."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

ATTENTION = "self_attn"
"""Name of the attention within a decoder layer in transformers."""


def recompute_activations(model: PreTrainedModel, what: str) -> None:
    """Makes the layers of ``model`` keep less in training.

    Args:
        model: The model; its results stay the same.
        what: ``none`` changes nothing. ``attention`` keeps the input of each layer's attention in place of
            its queries, keys, values and output. ``full`` keeps the input of each layer alone.

    Raises:
        ValueError: If ``what`` is ``attention``, and the layers of the model have none by this name.
    """
    if what == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if what != "attention":
        return
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    found = [layer.get_submodule(ATTENTION) for layer in layers if hasattr(layer, ATTENTION)]
    if not found:
        raise ValueError(
            f"model.gradient_checkpointing is attention, but no layer of {type(model).__name__} has a "
            f"{ATTENTION}. Use full or none."
        )
    for module in found:
        # The forward alone: hooks and the names of weights stay those of the module.
        module.forward = partial(_recomputed, module, module.forward)


def _recomputed(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
