"""Two machines with names and addresses of their own: a Slurm job trains, loses a node, and resumes.

The machines are network namespaces of this one; srun and scontrol are stubs that run a command on the right
machine. Everything else is real: workers, launchers, ranks, gloo, ZeRO.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import REPO
from namespaces import Machine, two_machines, why_not

from configs.compose import load
from launch.slurm.__main__ import script
from train.checkpoint_files import finished_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # two jobs of several minutes each

START_SECONDS = 600
LOSS_SECONDS = 60
"""What the rest of a job may take to end after a node was lost."""
STUBS = {
    # The machine of the worker is that of the second rank.
    "scontrol": '[[ $1 == show ]] && printf "%s\\n" node-b node-a node-b || echo "scontrol $*"',
    "srun": """
        while [[ $1 == --* ]]; do
          [[ $1 == --nodelist=* ]] && hosts=${1#--nodelist=}
          shift
        done
        pids=()
        trap 'kill "${pids[@]}" 2>/dev/null; wait; exit 143' TERM
        i=0
        for host in ${hosts//,/ }; do
          variable=NETNS_${host//-/_}
          SLURM_PROCID=$i ip netns exec "${!variable}" \\
            unshare --uts sh -c 'hostname "$0" && exec "$@"' "$host" "$@" &
          pids+=($!)
          i=$((i + 1))
        done
        # No --kill-on-bad-exit, as if the controller had not noticed: the others must end by themselves.
        status=0
        for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
        exit "$status"
    """,
    "python": f'exec "{sys.executable}" "$@"',
}
OPTIONS = [
    "nodes=3",
    "gpus=1",
    "launch.worker_nodes=1",
    "data=reasoning_gym",
    "data.num_train=200",
    "data.num_held_out=8",
    "data.num_eval=8",
    "rollout=cpu",
    "model.dtype=float32",
    "operator.schedule=[2,1]",
    "operator.workspace_tokens=64",
    "algo.problems_per_step=2",
    "algo.num_generations=2",
    "rollout.max_completion_length=16",
    "rollout.max_model_len=768",
    "train.save_steps=1",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
    "train.trace_steps=0",
]


@dataclass(frozen=True, slots=True)
class Cluster:
    nodes: tuple[Machine, Machine]
    binaries: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    binaries = tmp_path_factory.mktemp("bin")
    for name, body in STUBS.items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (binaries / name).chmod(0o755)
    with two_machines() as nodes:
        yield Cluster(nodes=nodes, binaries=binaries)


def _accelerate_file(folder: Path, stage: int) -> Path:
    """The shipped file for several machines, on CPUs."""
    content = yaml.safe_load((REPO / "launch" / "accelerate" / "multinode_zero3.yaml").read_text())
    content["mixed_precision"] = "no"
    content["deepspeed_config"] |= {"zero_stage": stage, "zero3_init_flag": stage == 3}
    path = folder / f"zero{stage}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _submit(cluster: Cluster, folder: Path, policy: Path, stage: int, steps: int) -> subprocess.Popen[bytes]:
    """Starts the job's script on the first node of its list, as Slurm does; it writes to ``said.txt``."""
    own = [
        *OPTIONS,
        f"model.path={policy}",
        f"output_dir={folder}",
        f"launch.accelerate={_accelerate_file(folder.parent, stage)}",
        f"train.max_steps={steps}",
    ]
    path = folder.parent / "job.sbatch"
    path.write_text(script(load("job", own), own))
    environment = {
        **os.environ,
        "PATH": f"{cluster.binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "7",
        **{f"NETNS_{node.name.replace('-', '_')}": node.namespace for node in cluster.nodes},
    }
    environment.pop("VLLM_API_KEY", None)
    with (folder.parent / "said.txt").open("ab") as said:
        return subprocess.Popen(
            cluster.nodes[1].command(["bash", str(path)]),
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder.parent,
        )


def _steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.parametrize("stage", [2, 3])
def test_a_job_on_two_machines_trains_loses_a_node_and_resumes(
    stage: int, cluster: Cluster, tiny_policy: Path, tmp_path: Path
):
    folder, said = tmp_path / "run", tmp_path / "said.txt"
    folder.mkdir()
    job = _submit(cluster, folder, tiny_policy, stage, steps=100_000)
    try:
        began = time.monotonic()
        while not (folder / "checkpoints" / "step_000002" / "manifest.json").is_file():
            assert job.poll() is None, said.read_text()[-6000:]
            assert time.monotonic() - began < START_SECONDS, said.read_text()[-6000:]
            time.sleep(0.2)
        cluster.nodes[0].lose()  # rank 0's
        lost = time.monotonic()
        assert job.wait(LOSS_SECONDS) != 0
        print(f"the job ended {time.monotonic() - lost:.0f} s after the node was lost")
    finally:
        cluster.nodes[0].lose()
        cluster.nodes[1].lose()
        job.wait()
    assert "Rank 1 ends, because rank 0 on node-a ended early" in said.read_text()
    done = finished_checkpoints(folder / "checkpoints")[-1].name
    last = int(done.removeprefix("step_")) + 1
    again = _submit(cluster, folder, tiny_policy, stage, steps=last)
    try:
        assert again.wait(START_SECONDS) == 0, said.read_text()[-6000:]
    finally:
        for node in cluster.nodes:
            node.lose()
        again.wait()
    assert f"Resumed from {folder}/checkpoints/{done}, step {last - 1}." in said.read_text()
    assert _steps(folder) == list(range(1, last + 1))
