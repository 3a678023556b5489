"""Bench: forward and backward of a mixed batch, against TRL's own log-prob code and against plain products.

    python tests/bench/update.py [--json] [--dtype float32] [--model 30m] [--repeat 3]

The batch: a group of 8 traces (prompt 60, completions of 40 to 400 tokens), one of 8 refinements (prompt 700,
40 to 300) and one of 4 distillations (prompt 1500, 60 to 120). Theirs is GRPOTrainer's
_get_per_token_logps_and_entropies with its fused head, on the batch as TRL collates it (prompts padded on the
left, completions on the right). Ours is what ``train.learner`` runs: shared prompts, packing, chunked head.

Cases: ``mix`` is the whole batch; ``mix-per-kind`` gives TRL each kind of group as a batch of its own;
``trace``, ``refine`` and ``distil`` are one group each; ``mix memory`` is the peak above the model and its
gradients; ``mix of products`` is our FLOP/s on useful tokens (each prompt once, without what is recomputed)
over that of plain matrix products of the model's shapes. Each side runs in a process of its own. A difference
of the gradients above 1e-4 of their norm is an error.

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from rollout.groups import GroupKey
from train.batch.collate import collate
from train.batch.packing import make_plan, share_prompts
from train.batch.rows import Branch, Row
from train.model.attention import SHARED_PROMPT
from train.model.policy import PolicyModel

KINDS = {"trace": (60, 8, 40, 400), "refine": (700, 8, 40, 300), "distil": (1500, 4, 60, 120)}
"""Prompt tokens, completions, their shortest and longest."""
CASES = {"mix": tuple(KINDS), **{kind: (kind,) for kind in KINDS}}
SIZES = {"30m": (8, 384, 1024, 6, 2), "135m": (30, 576, 1536, 9, 3), "360m": (32, 960, 2560, 15, 5)}
"""Of SmolLM2's family: layers, width, width of the MLP, heads, heads of keys and values."""
VOCABULARY = 49_152
TOKENS_PER_MICRO_BATCH = 4096
LARGEST_DIFFERENCE = 1e-4
LIMIT_SECONDS = 3600
MIB = 2**20
CPU = torch.device("cpu")


def make_model(size: str, dtype: torch.dtype, attention: str) -> LlamaForCausalLM:
    """A random model, always the same; ``attention`` is transformers' ``attn_implementation``."""
    layers, width, mlp, heads, keys = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype)


def make_rows(kinds: Sequence[str]) -> list[Row]:
    """The groups of some kinds; what a kind holds does not depend on the others."""
    return [_group(kind) for kind in kinds]


def _group(kind: str) -> Row:
    prompt, number, shortest, longest = KINDS[kind]
    rng = random.Random(kind)
    lengths = [shortest, longest, *(rng.randint(shortest, longest) for _ in range(number - 2))]
    return make_group(rng, kind, prompt, lengths)


def make_group(rng: random.Random, role: str, prompt: int, lengths: Sequence[int]) -> Row:
    """Random tokens with random advantages."""
    branches = tuple(_branch(rng, role, length) for length in lengths)
    key = GroupKey(problem_id="p", role=role, round=0, context="")
    return Row(key=key, prompt_ids=_ids(rng, prompt), branches=branches)


def _ids(rng: random.Random, length: int) -> np.ndarray:
    return np.array([rng.randrange(VOCABULARY) for _ in range(length)])


def _branch(rng: random.Random, kind: str, length: int) -> Branch:
    return Branch(
        call_id="",
        role=kind,
        is_positive=False,
        reward=0.0,
        completion_ids=_ids(rng, length),
        sampler_logprobs=np.zeros(length),
        train_mask=np.ones(length, dtype=bool),
        advantages=np.full(length, rng.gauss(0, 1)),
        policy_weight=1.0,
    )


def our_pass(
    model: PreTrainedModel,
    groups: Sequence[Row],
    *,
    tokens_per_micro_batch: int = TOKENS_PER_MICRO_BATCH,
    device: torch.device = CPU,
) -> Callable[[], None]:
    """A pass as the learner makes it; the loss is the sum of advantage x log-prob."""
    policy = PolicyModel(model, temperature=1.0)
    roles = sorted({branch.role for row in groups for branch in row.branches})
    rows = share_prompts(groups, tokens_per_row=tokens_per_micro_batch)
    plan = make_plan(
        rows,
        tokens_per_micro_batch=tokens_per_micro_batch,
        world_size=1,
        hidden_size=model.config.hidden_size,
    )

    def run() -> None:
        for (bin_,) in plan:
            batch = collate(bin_.rows, roles=roles).to(device)
            logprobs, _, _ = policy(batch)
            (logprobs * batch.advantages).sum().backward()

    return run


def their_pass(
    model: PreTrainedModel,
    batches: Sequence[Sequence[Row]],
    *,
    rows_at_once: int | None = None,
    device: torch.device = CPU,
) -> Callable[[], None]:
    """A pass of TRL's, each batch padded to its longest prompt and completion.

    With ``rows_at_once`` a batch is split into micro-batches of as many completions.
    """
    from accelerate import Accelerator
    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    trainer: Any = SimpleNamespace(accelerator=Accelerator(cpu=device.type == "cpu"))
    parts = []
    for rows in batches:
        *tensors, keep = _padded(rows)
        columns = (x.to(device).split(rows_at_once or len(x)) for x in tensors)
        parts += [(*part, keep) for part in zip(*columns, strict=True)]

    def run() -> None:
        for ids, mask, advantages, keep in parts:
            logprobs, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
                trainer, model, ids, mask, keep, compute_entropy=True
            )
            (logprobs * advantages).sum().backward()

    return run


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ids, attention mask, advantages with 0 at padding, columns of completions; as TRL collates."""
    pairs = [(row.prompt_ids, branch) for row in rows for branch in row.branches]
    before = max(len(prompt) for prompt, _ in pairs)
    after = max(len(branch.completion_ids) for _, branch in pairs)
    ids = torch.zeros(len(pairs), before + after, dtype=torch.long)
    mask, advantages = torch.zeros_like(ids), torch.zeros(len(pairs), after)
    for index, (prompt, branch) in enumerate(pairs):
        start, end = before - len(prompt), before + len(branch.completion_ids)
        ids[index, start:before] = torch.from_numpy(prompt)
        ids[index, before:end] = torch.from_numpy(branch.completion_ids)
        mask[index, start:end] = 1
        advantages[index, : end - before] = torch.from_numpy(branch.advantages).float()
    return ids, mask, advantages, after


def useful_flops(config: PreTrainedConfig, rows: Sequence[Row]) -> float:
    """Of one forward and backward pass with each prompt once, without anything recomputed."""
    layers, width, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    matrices = 2 * width * (queries + config.num_key_value_heads * config.head_dim) + 3 * width * mlp
    total = 0.0
    for row in rows:
        prompt = len(row.prompt_ids)
        pairs = prompt**2 / 2  # of queries and keys
        pairs += sum(n * prompt + n**2 / 2 for n in (len(b.completion_ids) for b in row.branches))
        total += 6 * layers * (matrices * row.num_tokens + 2 * queries * pairs)
        total += 6 * width * config.vocab_size * row.num_trained
    return total


def product_flops(size: str, dtype: torch.dtype) -> float:
    """FLOP/s of plain products of the model's shapes into memory that is there, weighted by their share."""
    _, width, mlp, _, _ = SIZES[size]
    rows = 2048
    work = seconds = 0.0
    shapes = {(width, width): 2, (width, mlp): 3, (width, VOCABULARY): 1}
    for (inner, outer), count in shapes.items():
        left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, outer, dtype=dtype)
        out = torch.empty(rows, outer, dtype=dtype)
        flops = 2 * rows * inner * outer
        repeats = max(3, round(2e10 / flops))

        def multiply(left: Tensor = left, right: Tensor = right, out: Tensor = out, n: int = repeats) -> None:
            for _ in range(n):
                torch.mm(left, right, out=out)

        best = min(_timed(multiply) for _ in range(5)) / repeats
        work += count * flops
        seconds += count * best
    return work / seconds


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(side: str, case: str, size: str, dtype: torch.dtype, repeat: int, gradients: Path) -> None:
    """One side's pass in this process: prints seconds and peak, and saves the gradients."""
    model = make_model(size, dtype, SHARED_PROMPT if side == "ours" else "sdpa")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rows = make_rows(CASES[case])
    if side == "ours":
        run = our_pass(model, rows)
    else:
        run = their_pass(model, [rows] if side == "theirs" else [[row] for row in rows])
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = _timed(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save(
        {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}, gradients
    )
    seconds = min([seconds, *(_timed(run) for _ in range(repeat - 1))])
    useful = useful_flops(model.config, rows)
    print(json.dumps({"seconds": seconds, "peak": (peak - floor) * 1024, "flops": useful}))


def in_a_process(arguments: argparse.Namespace, side: str, case: str, gradients: Path) -> dict[str, float]:
    """``measure`` in a process of its own."""
    # The peer's pass takes minutes; once is enough, as noise is small against it.
    repeat = arguments.repeat if side == "ours" or case != "mix" else 1
    command = [sys.executable, __file__, "--side", side, "--case", case, "--gradients", str(gradients)]
    command += ["--dtype", arguments.dtype, "--model", arguments.model, "--repeat", str(repeat)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    if done.returncode:
        sys.exit(f"update: {side} of {case} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(one: Path, other: Path) -> float:
    """Of two gradients, relative to their norm."""
    ours: Mapping[str, Tensor] = torch.load(one, weights_only=True)
    theirs: Mapping[str, Tensor] = torch.load(other, weights_only=True)
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    return (apart / sum(float(value.square().sum()) for value in theirs.values())) ** 0.5


def compare(arguments: argparse.Namespace, case: str, folder: Path) -> None:
    """Prints the rows of one case."""
    other = ", ".join(("", *({arguments.model, arguments.dtype} - {"30m", "float32"})))

    def row(name: str, mine: float, their: float, ratio: float, unit: str) -> None:
        line = {"bench": "update", "case": name + other, "ours": round(mine, 3), "theirs": round(their, 3)}
        line |= {"ratio": round(ratio, 2), "unit": unit}
        print(json.dumps(line) if arguments.json else "  ".join(map(str, line.values())), flush=True)

    ours = in_a_process(arguments, "ours", case, folder / "ours.pt")
    # Right after it: a machine that is shared does not stay as fast as it was.
    limit = product_flops(arguments.model, getattr(torch, arguments.dtype)) / 1e9
    theirs = in_a_process(arguments, "theirs", case, folder / "theirs.pt")
    apart = difference(folder / "ours.pt", folder / "theirs.pt")
    if arguments.dtype == "float32" and apart > LARGEST_DIFFERENCE:
        sys.exit(f"update: the gradients of {case} differ by {apart:.1e} of their norm.")
    row(case, ours["seconds"], theirs["seconds"], theirs["seconds"] / ours["seconds"], "s")
    if case != "mix":
        return
    apart_kinds = in_a_process(arguments, "theirs-per-kind", case, folder / "kinds.pt")
    per_kind = apart_kinds["seconds"]
    row("mix-per-kind", ours["seconds"], per_kind, per_kind / ours["seconds"], "s")
    peaks = ours["peak"] / MIB, theirs["peak"] / MIB
    row("mix memory", *peaks, peaks[1] / peaks[0], "MiB")
    reached = ours["flops"] / ours["seconds"] / 1e9
    row("mix of products", reached, limit, reached / limit, "GFLOP/s")


def main() -> int:
    """Runs every case both ways and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", choices=tuple(SIZES), default="30m")
    parser.add_argument("--repeat", type=int, default=3, help="passes, of which the fastest counts")
    parser.add_argument("--case", choices=tuple(CASES), help="only this one")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        dtype = getattr(torch, options.dtype)
        measure(options.side, options.case, options.model, dtype, options.repeat, options.gradients)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for case in [options.case] if options.case else CASES:
            compare(options, case, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
