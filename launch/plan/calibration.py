"""Replaces assumptions of a plan by what ``python tests/gpu`` measured (``plan.calibration``).

A figure is used only for a model of about the size that it was measured with: small models wait for launches,
large ones for memory and products.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import HardwareConfig, JobConfig, PlanConfig
from launch.plan.architecture import Architecture

GIGA = 1e9
SHAPES = {"8b": 8.19e9, "1.7b": 1.72e9, "0.6b": 0.596e9}
"""Parameters of the shapes that the figures name."""
ALIKE = 2.0
"""Largest ratio of the parameters of two models that count as about equal."""
RECOMPUTED = 4 / 3
"""FLOPs that a plan counts with full recomputation, which the bench has, over those that the bench counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An assumption and the measurement that replaces it."""

    option: str
    """Such as ``plan.train_mfu``."""
    value: float
    origin: str
    """Part and name of the figure, card and commit."""


def calibrated(config: JobConfig, model: Architecture) -> tuple[JobConfig, tuple[Measured, ...]]:
    """Returns the run with measured assumptions, and what was replaced. A value that the user set stays.

    Raises:
        ValueError: If the file of ``plan.calibration`` cannot be read.
    """
    if not config.plan.calibration:
        return config, ()
    parts = _read(config.plan.calibration)
    defaults = {"plan": PlanConfig(), "hardware": HardwareConfig()}
    changed, used = copy.deepcopy(config), []
    for found in _found(parts, config, model):
        part, _, name = found.option.partition(".")
        if getattr(getattr(config, part), name) == getattr(defaults[part], name):
            setattr(getattr(changed, part), name, found.value)
            used.append(found)
    return changed, tuple(used)


@dataclass(frozen=True, slots=True)
class _Part:
    """One part's figures by name, and where they are from."""

    figures: dict[str, Any]
    card: str
    commit: str

    def origin(self, part: str, name: str) -> str:
        return f"measured: {part}, {name} ({self.card}, {self.commit})"


NOTHING = _Part({}, "", "")


def _read(path: str) -> dict[str, _Part]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            name: _Part(
                {figure["name"]: figure["value"] for figure in part["figures"]}, part["card"], part["commit"]
            )
            for name, part in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"plan.calibration is {path!r}, which does not read as figures of a GPU: "
            f"{type(error).__name__}: {error}. Give the file that python tests/gpu writes, "
            "tests/bench/results_gpu.json."
        ) from error


def _found(parts: dict[str, _Part], config: JobConfig, model: Architecture) -> Iterator[Measured]:
    machine, update = parts.get("machine", NOTHING), parts.get("update", NOTHING)
    sampling, publishing = parts.get("sampling", NOTHING), parts.get("publishing", NOTHING)
    shape = min(SHAPES, key=lambda name: _ratio(SHAPES[name], model))
    product = next((v for n, v in machine.figures.items() if n.startswith("plain product, ")), None)
    shares = {
        name: value
        for name, value in update.figures.items()
        if name.startswith(f"{shape}, mix, ") and name.endswith(": share of a plain product")
    }
    if _ratio(SHAPES[shape], model) <= ALIKE:
        if product and shares:
            name = max(shares, key=shares.__getitem__)
            mfu = shares[name] * product * RECOMPUTED / config.hardware.bf16_tflops
            yield Measured(option="plan.train_mfu", value=mfu, origin=update.origin("update", name))
        name = f"{shape} {config.rollout.weight_transfer} on cuda"
        if seconds := publishing.figures.get(name):
            rate = 2 * SHAPES[shape] / seconds / GIGA  # bfloat16
            origin = publishing.origin("publishing", name)
            yield Measured(option="plan.publish_gbps", value=rate, origin=origin)
    name = "traces, graphs: memory read by decoding"
    size, read = sampling.figures.get("parameters of the model"), sampling.figures.get(name)
    if size and read and _ratio(1e6 * size, model) <= ALIKE:
        share = read / config.hardware.bandwidth_gbps
        origin = sampling.origin("sampling", name)
        yield Measured(option="plan.decode_bandwidth_share", value=share, origin=origin)
    if memory := machine.figures.get("memory"):
        origin = machine.origin("machine", "memory")
        yield Measured(option="hardware.memory_gib", value=memory, origin=origin)


def _ratio(parameters: float, model: Architecture) -> float:
    return max(parameters / model.parameters, model.parameters / parameters)
