"""LoRA adapters of the policy: the only trained weights, merged to publish, disabled for the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.schema import ModelConfig

if TYPE_CHECKING:  # peft takes seconds to import, and few runs use adapters
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
BASE = "base_layer."
"""Part that peft inserts into the name of a weight with an adapter."""


def add_adapters(model: PreTrainedModel, config: ModelConfig) -> None:
    """Freezes the model and adds adapters to its linear layers; initially they do not change its output.

    Raises:
        ValueError: If no layer matches a name in ``model.lora_target_modules``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    adapters = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        # No dropout: log-probs of the same policy must be reproducible.
        lora_dropout=0.0,
        target_modules=config.lora_target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(adapters, model, ADAPTER)
    except ValueError as error:
        raise ValueError(
            f"model.lora_target_modules is {config.lora_target_modules}: {error} "
            "Give names of linear layers such as q_proj, or leave it empty for all of them."
        ) from error


def lora_layers(model: nn.Module) -> "dict[str, LoraLayer]":
    """Returns the layers with an adapter, by name."""
    if not any(hasattr(module, "peft_config") for module in model.modules()):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disables the adapters of ``model`` within the context."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight of the model, with its adapter merged if it has one."""

    name: str
    """Name of the weight in a model without adapters."""
    parameters: tuple[nn.Parameter, ...]
    """Parameters that it is computed from: itself, then both factors of its adapter if it has one."""
    layer: "LoraLayer | None"
    """Layer of its adapter, or None."""

    def value(self, whole: Sequence[Tensor]) -> Tensor:
        """Returns the weight; merged in fp32, then rounded to its own dtype. ``whole``: its parameters."""
        if self.layer is None:
            return whole[0]
        # All adapted layers are linear, because ``lora_target_modules`` can name no others.
        base, down, up = whole
        return (base.float() + self.layer.scaling[ADAPTER] * (up.float() @ down.float())).to(base.dtype)


def merged_weights(model: nn.Module) -> Iterator[Weight]:
    """Yields every weight of a model, with adapters merged. Tied weights appear once."""
    layers = {f"{name}.{BASE}weight": layer for name, layer in lora_layers(model).items()}
    adapters = {
        id(parameter)
        for layer in layers.values()
        for part in (layer.lora_A, layer.lora_B)
        for parameter in part.parameters()
    }
    for name, parameter in model.named_parameters():
        if id(parameter) in adapters:
            continue
        layer = layers.get(name)
        parts = () if layer is None else (_factor(layer.lora_A), _factor(layer.lora_B))
        yield Weight(name=name.replace(BASE, ""), parameters=(parameter, *parts), layer=layer)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns both factors of every adapter, by their names in peft's files."""
    return {
        f"base_model.model.{name}.{part}.weight": _factor(getattr(layer, part))
        for name, layer in lora_layers(model).items()
        for part in ("lora_A", "lora_B")
    }


def adapter_config(model: nn.Module, base: str) -> "LoraConfig":
    """Returns the adapter settings as peft stores them; ``base`` is the name of the adapted model."""
    config = copy(cast(Any, model).peft_config[ADAPTER])
    config.base_model_name_or_path = base
    config.inference_mode = True
    return config


def _factor(matrices: nn.ModuleDict) -> nn.Parameter:
    return cast(nn.Parameter, matrices[ADAPTER].weight)
