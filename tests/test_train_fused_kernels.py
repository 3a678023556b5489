"""Which kernels of liger-kernel replace which layers, by option and device."""

import sys
from types import ModuleType
from typing import Any

import pytest

from configs.schema import ModelConfig
from train.model.fused_kernels import apply_fused_kernels
from train.model.policy import load_model


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a stand-in for the package, with the signatures of its version 0.8.5."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def qwen3(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        model: object = None,
    ) -> None:
        options = {"rope": rope, "rms_norm": rms_norm, "swiglu": swiglu, "model": model}
        losses = {"cross_entropy": cross_entropy, "fused_linear_cross_entropy": fused_linear_cross_entropy}
        calls.append(("qwen3", options | losses))

    def glm4(rope: bool = False, swiglu: bool = True) -> None:
        calls.append(("glm4", {"rope": rope, "swiglu": swiglu}))

    package, transformers, patches = (
        ModuleType(name)
        for name in (
            "liger_kernel",
            "liger_kernel.transformers",
            "liger_kernel.transformers.monkey_patch",
        )
    )
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": qwen3, "glm4": glm4}  # type: ignore[attr-defined]
    for module in (package, transformers, patches):
        module.__spec__ = object()  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize("option", ["auto", "true"])
def test_layers_are_replaced_and_the_loss_never_is(option, applied):
    config = ModelConfig(path="x", use_liger_kernel=option)
    assert apply_fused_kernels(config, "qwen3", on_gpu=True)
    layers = {"rope": True, "rms_norm": True, "swiglu": True, "model": None}
    losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert applied == [("qwen3", layers | losses)]
    assert apply_fused_kernels(config, "glm4", on_gpu=True)  # a family with fewer switches
    assert applied[1:] == [("glm4", {"rope": False, "swiglu": True})]


def test_nothing_is_replaced_on_a_cpu_or_where_it_is_not_wanted(applied):
    assert not apply_fused_kernels(ModelConfig(path="x"), "qwen3", on_gpu=False)
    assert not apply_fused_kernels(ModelConfig(path="x", use_liger_kernel="false"), "qwen3", on_gpu=True)
    assert not apply_fused_kernels(ModelConfig(path="x"), "unknown", on_gpu=True)
    assert not applied


def test_auto_without_the_package_replaces_nothing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not apply_fused_kernels(ModelConfig(path="x"), "qwen3", on_gpu=True)
    with pytest.raises(ValueError, match=r"use_liger_kernel is true, but the package is not installed"):
        apply_fused_kernels(ModelConfig(path="x", use_liger_kernel="true"), "qwen3", on_gpu=True)


def test_a_family_without_kernels_is_refused_by_name(applied):
    with pytest.raises(ValueError, match=r"has none for models of type unknown\. Use auto or false"):
        apply_fused_kernels(ModelConfig(path="x", use_liger_kernel="true"), "unknown", on_gpu=True)
    assert not applied


def test_a_model_is_made_after_its_layers_were_replaced(tiny_policy, applied, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    original = "train.model.policy.AutoModelForCausalLM.from_pretrained"
    from train.model.policy import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(original, lambda *a, **o: seen.append(len(applied)) or load(*a, **o))
    config = ModelConfig(path=str(tiny_policy), dtype="float32", attention="shared_prompt")
    load_model(config)
    assert seen == [1]


def test_true_is_refused_on_a_cpu(tiny_policy):
    config = ModelConfig(path=str(tiny_policy), use_liger_kernel="true")
    with pytest.raises(
        ValueError, match=r"model\.use_liger_kernel is true, but its kernels run on a GPU only"
    ):
        load_model(config)


@pytest.mark.parametrize("value", ["True", "FALSE", "Auto"])
def test_a_boolean_of_a_command_line_is_a_value_of_the_option(value):
    assert ModelConfig(path="x", use_liger_kernel=value).use_liger_kernel == value.lower()
