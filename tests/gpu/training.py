"""A few steps of the whole loop: real worker, DeepSpeed in bf16, weights published, memory against the plan.

With ``--model`` the folder's model trains on sums in words; without it a random tiny policy does, which shows
that the loop runs and that sampler and trainer agree, and nothing about learning.
"""

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_script import Tell, options_of, teller

from rollout.workers.process_guard import end_guarded, start_guarded

STEPS = 3
PROBLEMS = 64
LARGEST_MISMATCH_KL = 0.02
"""Nats per token, the threshold of the alarm ``sampler_mismatch``."""
SHOWN = (
    "tokens_per_second",
    "time/collect",
    "time/update",
    "time/publish",
    "accuracy/trace",
    "memory/peak_gib",
)
LEARNS = [
    "rewards=custom",
    "rewards.path=training:length_reward",
    "algo.problems_per_step=4",
    "algo.num_generations=4",
    "operator.workspace_tokens=96",
    "rollout.max_completion_length=24",
    "rollout.max_model_len=768",
]
"""A random policy answers nothing: its reward is arbitrary, so that there is something to learn from."""
MODEL = [
    "algo.problems_per_step=16",
    "algo.num_generations=8",
    "operator.workspace_tokens=1024",
    "rollout.max_completion_length=384",
    "rollout.max_model_len=3072",
    "train.tokens_per_micro_batch=32768",
    "model.gradient_checkpointing=full",
]
ON_CPU = [
    "launch.accelerate=cpu_zero2",
    "model.dtype=float32",
    "rollout.dtype=float32",
    "rollout.kv_cache_gib=1",
]
ON_GPU = [
    "gpus=1",
    "launch.accelerate=gpu_zero2",
    "rollout.enable_sleep_mode=true",
    "rollout.gpu_memory_utilization=0.4",
]


def length_reward(*, gold: str, completion: str) -> float:
    """An arbitrary reward: 1 for a completion of an even number of letters."""
    return float(len(completion) % 2 == 0)


def _write_problems(path: Path) -> None:
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(PROBLEMS):
            apples, bags, more = (rng.randint(2, 9) for _ in range(3))
            question = f"A bag holds {apples} apples. Tom has {bags} bags and {more} more. How many in all?"
            print(json.dumps({"question": question, "answer": str(apples * bags + more)}), file=file)


def _import_path() -> str:
    """Returns PYTHONPATH with this folder, which holds the reward."""
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).parent))))


def _tiny_policy(folder: Path) -> Path:
    from tiny import byte_tokenizer, tiny_model

    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _steps(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # The last line may be half written.
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _tell_step(metrics: dict[str, Any], tell: Tell) -> None:
    step = metrics["step"]
    for name in SHOWN:
        if name in metrics:
            tell(f"step {step}: {name}", metrics[name], "s" if name.startswith("time/") else "")
    for name, value in metrics.items():
        if name.startswith("mismatch_kl/"):
            tell(f"step {step}: {name}", value, "nats per token")
            tell(f"step {step}: sampler and trainer agree, {name}", value < LARGEST_MISMATCH_KL)
    tell(f"step {step}: every update was applied", metrics["updates_refused"] == 0 < metrics["updates"])


def main() -> int:
    options, tell = options_of(__doc__ or ""), teller("training")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_problems(folder / "problems.jsonl")
        policy = options.model or _tiny_policy(folder / "policy")
        command = [sys.executable, "-m", "launch", f"model.path={policy}", f"output_dir={folder / 'run'}"]
        command += ["data=file", f"data.path={folder / 'problems.jsonl'}", f"train.max_steps={STEPS}"]
        command += ["train.eval_at_start=false", "train.eval_at_end=false", "algo.scale_rewards=none"]
        command += ["operator.schedule=[4,1]", "train.save_steps=100"]
        command += MODEL if options.model else LEARNS
        command += ON_GPU if options.device == "cuda" else ON_CPU
        log, told, began = folder / "log", 0, time.monotonic()
        with log.open("wb") as out:
            run = start_guarded(command, out, {**os.environ, "PYTHONPATH": _import_path()})
        try:
            while run.poll() is None or len(_steps(folder / "run" / "metrics.jsonl")) > told:
                for metrics in _steps(folder / "run" / "metrics.jsonl")[told:]:
                    if not told:
                        tell("until the end of step 1", time.monotonic() - began, "s")
                    _tell_step(metrics, tell)
                    told += 1
                time.sleep(0.2)
        finally:
            end_guarded(run)
        if run.returncode:
            print(log.read_text(errors="replace")[-4000:])
        tell(f"{STEPS} steps were made", told == STEPS and run.returncode == 0)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
