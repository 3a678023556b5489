"""Bench: how the cost of a step grows with its sizes, as the exponent of a power law.

    python tests/bench/growth.py [--json] [--repeat 3]

`update` is forward and backward of groups as ``tests/bench/update.py`` makes them (8 layers, 384 wide):
against the completions of a group (prompt 700, 100 tokens each) and against the length of the prompt, which
a workspace fills (8 completions). `client` is the CPU of an operator against M, its drafts, with the stub
server. `ranks` is the update of one batch by DeepSpeed on one rank of one thread and on two; its figure is
how much faster two are.

`ours` is the measured exponent, `theirs` that of linear growth; of `ranks` the speed-ups. `--json` prints
one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1 means that ours is
better.
"""

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation_fakes import Kept
from fakes import CODEC, END, EvenIsCorrect, operator, problem, settings
from stub_server import StubOptions, stub_process
from tiny import byte_tokenizer, tiny_model
from training_fakes import make_config
from update import make_group, make_model, our_pass

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.engine import spare_collector
from rollout.evaluation.evaluate import PlannedRollout, evaluate
from train.batch.rows import Row
from train.distributed import leave, make_accelerator
from train.learner import Learner
from train.model.attention import SHARED_PROMPT
from train.nonfinite_steps import RefusalGuard

REPO = Path(__file__).parents[2]
GROUP_SIZES = (2, 4, 8, 16, 32)
PROMPTS = (256, 512, 1024, 2048, 3600)
"""Tokens; the longest still fits a micro-batch with one completion."""
DRAFTS = (1, 2, 4, 8, 16, 32)
PROBLEMS = 150
LIMIT_SECONDS = 600


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Of the power law that fits best: the slope of the logarithms, least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return slope / sum((a - middle) ** 2 for a in x)


def best_of(repeat: int, work: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """The least time of several runs."""
    times = []
    for _ in range(repeat):
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def update_costs(groups: Sequence[Row], repeat: int) -> list[float]:
    """Seconds of a pass over each group."""
    model = make_model("30m", torch.float32, SHARED_PROMPT)
    our_pass(model, [groups[0]])()  # gradients, thread pools
    return [best_of(repeat, our_pass(model, [group])) for group in groups]


def client_costs(repeat: int) -> list[float]:
    """CPU seconds of ``PROBLEMS`` rollouts with M drafts and one refinement, for each M."""
    answer = [*CODEC.tokenizer(" \\boxed{2}").input_ids, END]
    options = StubOptions(filler=CODEC.tokenizer("a").input_ids[0], sigma=0.0, tails=[answer])
    spare_collector()
    with stub_process(options) as url:
        return [
            best_of(repeat, lambda m=m: asyncio.run(_evaluate(url, m)), time.process_time) for m in DRAFTS
        ]


async def _evaluate(url: str, drafts: int) -> None:
    pdr = operator((drafts, 1), kappa=512)  # the workspace is bounded, as it is in training
    jobs = [PlannedRollout(problem=problem(f"p{i}"), operator=pdr, sample=0) for i in range(PROBLEMS)]
    async with WorkerPool([Endpoint(url=url)], RolloutConfig()) as pool:
        own = settings(pool)
        own = replace(own, sampling=replace(own.sampling, max_tokens=4096))
        await evaluate(jobs, own, EvenIsCorrect(), Kept(), seed=0)


def rank_seconds(ranks: int, repeat: int) -> float:
    """Seconds in which so many ranks update on the same batch."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(REPO / "launch/accelerate/cpu_zero2.yaml")]
    command += ["--num_processes", str(ranks), __file__, "--rank", "--repeat", str(repeat)]
    done = subprocess.run(
        command,
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        sys.exit(f"growth: {ranks} ranks ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"seconds"')))[
        "seconds"
    ]


def run_rank(repeat: int) -> None:
    """One rank: the same updates on both numbers of ranks, timed by rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy"
        tiny_model(hidden_size=256, intermediate_size=768, num_hidden_layers=8).save_pretrained(policy)
        byte_tokenizer().save_pretrained(policy)
        config = make_config(Path(folder), policy, train={"tokens_per_micro_batch": 4096})
        accelerator = make_accelerator(config)
        learner = Learner(config, accelerator, RefusalGuard(Path(folder), None))
        rng = random.Random(0)
        rows = [_small_group(rng) for _ in range(8)]
        learner.learn(rows, 1)
        seconds = best_of(repeat, lambda: learner.learn(rows, 2))
        if accelerator.is_main_process:
            print(json.dumps({"seconds": seconds}), flush=True)
        accelerator.wait_for_everyone()
    leave()


def _small_group(rng: random.Random) -> Row:
    """Of the small policy's vocabulary."""
    row = make_group(rng, "refine", 300, [rng.randint(100, 200) for _ in range(8)])
    branches = (replace(branch, completion_ids=branch.completion_ids % 261) for branch in row.branches)
    return replace(row, prompt_ids=row.prompt_ids % 261, branches=tuple(branches))


def main() -> int:
    """Measures every growth and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the fastest counts")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options.repeat)
        return 0

    def row(case: str, ours: float, theirs: float, ratio: float, unit: str) -> None:
        line = {"bench": "growth", "case": case, "ours": round(ours, 3), "theirs": theirs}
        line |= {"ratio": round(ratio, 2), "unit": unit}
        print(json.dumps(line) if options.json else "  ".join(map(str, line.values())), flush=True)

    def growth(case: str, sizes: Sequence[int], costs: Sequence[float]) -> None:
        name = f"{case}, {sizes[0]} to {sizes[-1]}"
        row(name, exponent(sizes, costs), 1.0, 1.0 / exponent(sizes, costs), "exponent")
        print(f"  {name}: " + ", ".join(f"{cost:.3f} s" for cost in costs), file=sys.stderr)

    rng = random.Random(0)
    of_sizes = [make_group(rng, "refine", 700, [100] * size) for size in GROUP_SIZES]
    growth("update against completions of a group", GROUP_SIZES, update_costs(of_sizes, options.repeat))
    of_prompts = [make_group(rng, "refine", prompt, [100] * 8) for prompt in PROMPTS]
    growth("update against tokens of the workspace", PROMPTS, update_costs(of_prompts, options.repeat))
    growth("client CPU against drafts", DRAFTS, client_costs(options.repeat))
    faster = rank_seconds(1, options.repeat) / rank_seconds(2, options.repeat)
    row("update on two ranks against one", faster, 2.0, faster / 2, "times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
