"""The config file passed to ``accelerate launch``, and its settings that affect memory."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from configs.schema import JobConfig

FOLDER = Path(__file__).parent / "accelerate"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccelerateFile:
    """The settings of an accelerate config file that planning and launching need."""

    path: Path
    zero_stage: int
    num_processes: int
    """Ranks on all machines; the command line may override it."""
    offloads_optimizer: bool
    offloads_weights: bool


def accelerate_file(config: JobConfig) -> AccelerateFile:
    """Returns the file that ``launch.accelerate`` names.

    Raises:
        ValueError: If the file does not exist, or its ``distributed_type`` is not DeepSpeed.
    """
    name = config.launch.accelerate
    if name == "auto":
        name = "cpu_zero2" if not config.gpus else "gpu_zero3" if config.nodes == 1 else "multinode_zero3"
    shipped = FOLDER / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise ValueError(
            f"launch.accelerate is '{name}'; choose auto, one of {names}, or the path of a file."
        )
    return _read(path)


def _read(path: Path) -> AccelerateFile:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if content.get("distributed_type") != "DEEPSPEED":
        raise ValueError(
            f"{path}: distributed_type is {content.get('distributed_type')!r}; the trainer needs DEEPSPEED."
        )
    deepspeed = content.get("deepspeed_config") or {}
    return AccelerateFile(
        path=path,
        zero_stage=int(deepspeed.get("zero_stage", 0)),
        num_processes=int(content.get("num_processes", 1)),
        offloads_optimizer=deepspeed.get("offload_optimizer_device", "none") != "none",
        offloads_weights=deepspeed.get("offload_param_device", "none") != "none",
    )
