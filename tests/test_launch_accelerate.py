"""The files for ``accelerate launch``."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from conftest import config_with

from launch.accelerate_file import FOLDER, accelerate_file

NAMES = ["cpu_zero2", "cpu_zero3", "gpu_zero2", "gpu_zero3", "gpu_zero3_offload", "multinode_zero3"]


def _file(*overrides: str):
    return accelerate_file(config_with("job", ["model.path=x", "data.path=x"], overrides))


def test_these_are_all_files():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_the_file_and_understands_it_as_we_do(name: str):
    theirs = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    ours = _file(f"launch.accelerate={name}")
    assert theirs.distributed_type == DistributedType.DEEPSPEED
    deepspeed = theirs.deepspeed_config
    assert deepspeed["zero_stage"] == ours.zero_stage == int(name.split("zero")[1][0])
    assert deepspeed["zero3_init_flag"] == (ours.zero_stage == 3)
    assert deepspeed["gradient_accumulation_steps"] == 1
    assert theirs.num_processes == ours.num_processes
    assert ours.offloads_optimizer == ours.offloads_weights == ("offload" in name)
    assert theirs.use_cpu is False
    assert theirs.mixed_precision == ("no" if name.startswith("cpu") else "bf16")


@pytest.mark.parametrize(
    ("machines", "name"),
    [([], "cpu_zero2"), (["gpus=8"], "gpu_zero3"), (["nodes=2", "gpus=8"], "multinode_zero3")],
)
def test_auto_goes_by_the_machines(machines: list[str], name: str):
    assert _file(*machines).path.stem == name


def test_a_file_of_ones_own_is_given_by_its_path(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text((FOLDER / "cpu_zero3.yaml").read_text().replace("num_processes: 2", "num_processes: 5"))
    assert _file(f"launch.accelerate={own}").num_processes == 5


def test_a_name_without_a_file_lists_what_there_is():
    with pytest.raises(ValueError, match=r"launch\.accelerate is 'gpu_zero9'; choose auto, one of cpu_zero2"):
        _file("launch.accelerate=gpu_zero9")


def test_a_file_without_deepspeed_is_refused(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\n")
    with pytest.raises(ValueError, match=r"distributed_type is 'MULTI_GPU'; the trainer needs DEEPSPEED"):
        _file(f"launch.accelerate={own}")
