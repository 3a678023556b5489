"""Fused RMSNorm, rotary positions and SwiGLU of liger-kernel in place of those of transformers."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from configs.schema import ModelConfig

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Switches of kernels that are not used: they replace a forward pass with LM head, which no policy runs."""


def apply_fused_kernels(config: ModelConfig, model_type: str, *, on_gpu: bool) -> bool:
    """Replaces the layers of a family of models, before a model is made; a second call changes nothing.

    Every model of that family in this process gets them: policy, critic and reference alike.

    Args:
        config: Source of ``use_liger_kernel``.
        model_type: Family of the model, as in its ``config.json``.
        on_gpu: True if the model will run on a GPU.

    Returns:
        True if the kernels are used.

    Raises:
        ValueError: If ``model.use_liger_kernel`` is true and they cannot be used.
    """
    if config.use_liger_kernel == "false":
        return False
    reason, patch = _obstacle(model_type, on_gpu=on_gpu)
    if patch is None:
        if config.use_liger_kernel == "true":
            raise ValueError(f"model.use_liger_kernel is true, but {reason} Use auto or false.")
        return False
    switches = inspect.signature(patch).parameters
    # The package knows which of its layers fit a family: its other defaults stand.
    patch(**{name: False for name in LOSSES if name in switches})
    return True


def _obstacle(model_type: str, *, on_gpu: bool) -> tuple[str, Callable[..., Any] | None]:
    """Returns why the kernels cannot be used, or the function that applies them."""
    if not on_gpu:
        return "its kernels run on a GPU only, and this machine has none.", None
    if importlib.util.find_spec("liger_kernel") is None:
        return 'the package is not installed: pip install "pdr-rl[gpu]".', None
    # By name: the package is not installed where types are checked.
    patches = importlib.import_module("liger_kernel.transformers.monkey_patch")
    patch = patches.MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    return f"liger-kernel has none for models of type {model_type}.", patch
