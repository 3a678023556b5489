"""Bench of the plan's memory model: predicted against measured peak of real training ranks on this CPU.

    python tests/bench/plan_memory.py [--json] [--policy FOLDER ...] [--stages 0 2 3]

Each case is a short run of ``python -m train`` (stage 0: one process without DeepSpeed; 2 and 3: two ranks)
with a real vLLM worker. Measured is the peak resident memory of a rank (VmHWM) above that of a process that
trained next to nothing with the same libraries. Rank 1 is taken where there is one: rank 0 also holds
problems, verifier and reports, and copies the weights when it publishes them. `--json` prints one object a
line: {"bench", "case", "ours", "theirs", "ratio", "unit"} with ours = predicted and theirs = measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from configs.compose import load
from launch.plan.architecture import architecture_of
from launch.plan.memory import ShardLayout, TrainerMemory, largest, trainer_memory
from launch.plan.workload import largest_micro_batches, workload_of
from rollout.build import training_calls
from rollout.workers.process_guard import end_guarded, start_guarded

MIB = 2**20
REPO = Path(__file__).parents[2]
RUN_SECONDS = 1200
DEMO = REPO / "outputs" / "demo" / "policy"
OPTIONS = [
    "data=reasoning_gym",
    "data.num_eval=1",
    "model.dtype=float32",
    "rollout.dtype=float32",
    "rollout.kv_cache_gib=1",
    "rollout.max_completion_length=48",
    "rollout.max_model_len=1024",
    "operator.workspace_tokens=192",
    "algo.problems_per_step=8",
    "algo.num_generations=8",
    "algo.num_updates=2",
    "algo.scale_rewards=none",
    "train.tokens_per_micro_batch=1024",
    "train.max_steps=1",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
    "train.save_steps=100",
    "rewards=custom",
    "rewards.path=plan_memory:is_even",
    # The longest prompt of these problems with the instruction around it.
    "plan.max_question_tokens=96",
    "plan.mean_question_tokens=96",
    "plan.completion_share=0.9",
]
"""A step of two updates, as AdamW makes its moments in the first, whose micro-batches are full. The
reward is arbitrary, so that groups have something to learn from."""


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
BASELINE = """
import deepspeed, psutil, torch
import train.rank
from accelerate import Accelerator
from transformers import Qwen3Config, Qwen3ForCausalLM

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16)
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_key_value_heads=1, **sizes))
model, optimizer = Accelerator().prepare(model, torch.optim.AdamW(model.parameters()))
for _ in range(2):
    model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(psutil.Process().memory_info().rss)
"""
"""Libraries load a part of themselves when they are first used."""


def is_even(*, gold: str, completion: str) -> float:
    """An arbitrary reward: 1 for a completion of an even number of letters."""
    return float(len(completion) % 2 == 0)


def predicted(policy: Path, stage: int) -> TrainerMemory:
    """What the plan says of one rank."""
    config = load("job", [*OPTIONS, f"model.path={policy}"])
    work = workload_of(config, training_calls)
    sharding = ShardLayout(zero_stage=stage, ranks=2 if stage else 1, on_cpu=True)
    return largest(
        trainer_memory(architecture_of(str(policy)), sharding, micro, bytes_per_value=4, recomputes="none")
        for micro in largest_micro_batches(config, work)
    )


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def baseline() -> int:
    """Resident memory of a process that trains next to nothing with the same libraries, bytes."""
    done = subprocess.run(
        [sys.executable, "-c", BASELINE],
        cwd=REPO,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def rank_of(process: psutil.Process) -> int | None:
    """The rank that a process is, or None."""
    try:
        line = process.cmdline()
        if "vllm.entrypoints.openai.api_server" in line or "-m" not in line:
            return None
        if not any(word in ("train",) for word in line[1:4]):
            return None
        return int(process.environ().get("RANK", "0"))
    except (psutil.Error, ProcessLookupError):
        return None


def measured(policy: Path, stage: int, folder: Path) -> dict[int, int]:
    """Peak bytes of each rank of a short run."""
    train = ["-m", "train", *(o for o in OPTIONS if not o.startswith("plan.")), f"model.path={policy}"]
    train += [f"output_dir={folder}"]
    launch = ["-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(REPO / f"launch/accelerate/cpu_zero{stage}.yaml")]
    command = [sys.executable, *(launch if stage else []), *train]
    log = folder.with_suffix(".log")
    environment = {**os.environ, **ENVIRONMENT}
    environment["PYTHONPATH"] = f"{REPO}{os.pathsep}{Path(__file__).parent}"  # the latter has is_even
    with log.open("wb") as out:
        run = start_guarded(command, out, environment)
    peaks: dict[int, int] = {}
    deadline = time.monotonic() + RUN_SECONDS
    while run.poll() is None and time.monotonic() < deadline:
        for process in psutil.Process(run.pid).children(recursive=True):
            rank = rank_of(process)
            if rank is not None:
                peaks[rank] = max(peaks.get(rank, 0), peak_bytes(process.pid))
        time.sleep(0.1)
    end_guarded(run)
    if run.returncode != 0:
        sys.exit(f"The run of {policy} at stage {stage} failed:\n{log.read_text()[-3000:]}")
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policy", type=Path, action="append", help="HF folder; the demo's by default")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 3], choices=[0, 2, 3])
    arguments = parser.parse_args()
    policies = arguments.policy or [path for path in (DEMO,) if path.is_dir()]
    if not policies:
        print(f"{DEMO} does not exist: run make demo, or give --policy.", file=sys.stderr)
        return
    floor = baseline()
    for policy in policies:
        for stage in arguments.stages:
            with tempfile.TemporaryDirectory() as folder:
                peaks = measured(policy.resolve(), stage, Path(folder) / "run")
            memory = predicted(policy, stage)
            found = (peaks[max(peaks)] - floor) / MIB
            ours = memory.peak / MIB
            line = {
                "bench": "plan memory",
                "case": f"{policy.name}, ZeRO stage {stage}, rank {max(peaks)}",
                "ours": round(ours),
                "theirs": round(found),
                "ratio": round(ours / found, 3),
                "unit": "MiB",
            }
            print(json.dumps(line) if arguments.json else f"{line['case']}: {line}", flush=True)
            if not arguments.json:
                parts = {name: round(getattr(memory, name) / MIB) for name in memory.__slots__}
                print(f"  parts {parts}; libraries {floor / MIB:.0f}; all ranks {peaks}", flush=True)


if __name__ == "__main__":
    main()
