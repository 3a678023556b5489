"""The update: forward and backward of mixed batches, against TRL's log-prob code and a plain product.

    python tests/gpu/update.py [--device cuda] [--size full]

Random weights of Qwen3's shapes, gradient checkpointing, bfloat16 on a GPU. Useful FLOPs count each prompt
once and nothing that is recomputed. First the LM head's log-probs and gradients are compared with plain fp32
products, and its seconds with those of TRL's fused head. Then each side runs in a process of its own with a
limit: TRL on the mixed batch as it collates it may not end.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_head import compare_heads, head_agrees
from gpu_script import Tell, parser_of, teller

BENCH = Path(__file__).resolve().parents[1] / "bench" / "update.py"
SHAPES = {
    "8b": (36, 4096, 12288, 32, 8, 128, 151_936),
    "1.7b": (28, 2048, 6144, 16, 8, 128, 151_936),
    "0.6b": (28, 1024, 3072, 16, 8, 128, 151_936),
    "tiny": (2, 64, 96, 4, 2, 16, 49_152),
}
"""Layers, width, width of the MLP, heads, key heads, head size, vocabulary."""
KINDS = {
    "full": {"trace": (256, 8, 1500), "refine": (4096, 8, 1000), "distil": (6144, 4, 600)},
    "tiny": {"trace": (16, 4, 30), "refine": (60, 4, 20), "distil": (90, 2, 16)},
}
"""Prompt tokens, completions, their median."""
MIX = ("trace", "refine")
SHORT = "many short groups"
SHORT_GROUPS = {"full": (64, 100, 250), "tiny": (4, 10, 12)}
"""Groups of 8, prompt tokens, tokens of each completion: a small model on easy problems."""
TOKENS = {"full": 16_384, "tiny": 512}
PRODUCT_ROWS = {"full": 8192, "tiny": 512}
TARGETS = {("8b", "mix"): 0.55, ("0.6b", SHORT): 0.25}
"""Least share of a plain product."""
TIMES_TRL = {"as collated": 8.0, "per kind": 3.0}
"""How many times as fast as TRL the 8B mix should be."""
FASTEST = "varlen"
"""Attention of the comparisons; the others run the mix only."""
LIMITS = {"ours": 75.0, "trl": 60.0}
"""Seconds of a process on a GPU, its start included; three times as long on a CPU."""
ROWS_AT_ONCE = 2
"""Completions in a micro-batch of TRL: more do not fit beside 8B."""


def bench() -> Any:
    """The module of ``tests/bench/update.py``, whose name is that of this script."""
    spec = importlib.util.spec_from_file_location("update_bench", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_rows(case: str, size: str) -> list[Any]:
    """The groups of a case, always the same: ``mix``, a kind, or ``SHORT``."""
    make_group, rng = bench().make_group, random.Random(7)
    if case == SHORT:
        number, prompt, length = SHORT_GROUPS[size]
        return [make_group(rng, "trace", prompt, [length] * 8) for _ in range(number)]
    rows = []
    for kind in MIX if case == "mix" else (case,):
        prompt, number, median = KINDS[size][kind]
        lengths = [1 + int(median * min(2.7, rng.lognormvariate(0, 0.6))) for _ in range(number)]
        rows.append(make_group(rng, kind, prompt, lengths))
    return rows


def make_model(shape: str, attention: str, options: argparse.Namespace) -> Any:
    """A random Qwen3 on the device, with gradient checkpointing."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from configs.schema import ModelConfig
    from train.model.fused_kernels import apply_fused_kernels

    used = ModelConfig(path="", use_liger_kernel="true" if options.liger else "false")
    apply_fused_kernels(used, "qwen3", on_gpu=options.device == "cuda")
    layers, width, mlp, heads, keys, head_dim, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=head_dim,
        max_position_embeddings=40960,
        tie_word_embeddings=shape != "8b",
        use_cache=False,
    )
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    with torch.device(options.device):
        model = Qwen3ForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def seconds_of(run: Callable[[], None], options: argparse.Namespace, repeat: int) -> float:
    """Seconds of the fastest pass after one that warms up."""
    import torch

    best = float("inf")
    for number in range(repeat + 1):
        began = time.perf_counter()
        run()
        if options.device == "cuda":
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - began)
    return best


def product_flops(options: argparse.Namespace) -> float:
    """FLOP/s of a plain product of square matrices."""
    import torch

    rows = PRODUCT_ROWS[options.size]
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    left, right = (torch.randn(rows, rows, device=options.device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(10):
            torch.mm(left, right)

    return 2 * rows**3 * 10 / seconds_of(multiply, options, 3)


def measure_ours(options: argparse.Namespace, tell: Tell) -> None:
    """Prints seconds, share of a plain product and peak of each attention and case."""
    import torch

    from train.model.attention_choice import SHARING

    names = {name: attention for attention, name in SHARING.items()}
    model = make_model(options.shape, names[FASTEST], options)
    limit = product_flops(options)
    # Torch has no backward pass of FlexAttention on a CPU.
    others = [("shared_prompt", "mix"), *([("flex", "mix")] if options.device == "cuda" else [])]
    kinds = [(FASTEST, case) for case in ("trace", "refine", "distil", SHORT)]
    runs = [(FASTEST, "mix"), *([] if options.brief else [*kinds, *others])]
    for attention, case in runs:
        model.config._attn_implementation = names[attention]
        rows = make_rows(case, options.size)
        run = bench().our_pass(
            model, rows, tokens_per_micro_batch=TOKENS[options.size], device=torch.device(options.device)
        )
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of(run, options, 2)
        name = f"{options.shape}, {case}, {attention}{', liger' if options.liger else ''}"
        tell(f"{name}: pass", seconds, "s")
        target = TARGETS.get((options.shape, case)) if attention == FASTEST and options.liger else None
        share = bench().useful_flops(model.config, rows) / seconds / limit
        tell(f"{name}: share of a plain product", share, "", target)
        if options.device == "cuda":
            tell(f"{name}: peak", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def measure_trl(options: argparse.Namespace, tell: Tell) -> None:
    """Prints seconds of TRL's code on the mix: each kind as a batch of its own, then all in one."""
    import torch

    model = make_model(options.shape, "sdpa", options)
    rows = make_rows("mix", options.size)
    for name, batches in (("per kind", [[row] for row in rows]), ("as collated", [rows])):
        run = bench().their_pass(
            model, batches, rows_at_once=ROWS_AT_ONCE, device=torch.device(options.device)
        )
        tell(f"{options.shape}, mix, TRL {name}: pass", seconds_of(run, options, 1), "s")


def in_a_process(arguments: list[str], limit: float, tell: Tell) -> dict[str, float]:
    """Runs one side; hands on its figures at once, and returns them by name."""
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(limit, process.kill)
    timer.start()
    found: dict[str, float] = {}
    assert process.stdout is not None
    with process.stdout as lines:
        for text in lines:
            print(text, end="", flush=True)
            if text.startswith('{"part"'):
                line = json.loads(text)
                found[line["name"]] = line["value"]
    status = process.wait()
    timer.cancel()
    if status:
        why = f"ended at its limit of {limit:g} s" if status == -9 else f"ended with status {status}"
        tell(f"{' '.join(arguments[:4])}", why)
    return found


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--side", choices=tuple(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=tuple(SHAPES), help=argparse.SUPPRESS)
    parser.add_argument("--liger", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--brief", action="store_true", help=argparse.SUPPRESS)
    options, tell = parser.parse_args(), teller("update")
    if options.side:
        {"ours": measure_ours, "trl": measure_trl}[options.side](options, tell)
        return 0
    agrees = head_agrees(options, tell)
    compare_heads(options, tell)
    given = ["--device", options.device, "--size", options.size]
    has_liger = options.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    with_liger = ["--liger"] if has_liger else []
    found: dict[str, float] = {}

    def run(side: str, shape: str, *more: str) -> None:
        limit = LIMITS[side] * (1 if options.device == "cuda" else 3)
        found.update(in_a_process(["--side", side, "--shape", shape, *given, *more], limit, tell))

    # What the targets are about comes first.
    largest, *others = ("8b", "0.6b", "1.7b") if options.size == "full" else ("tiny",)
    run("ours", largest, *with_liger)
    run("trl", largest)
    mine = found.get(f"{largest}, mix, {FASTEST}{', liger' if has_liger else ''}: pass")
    for name, target in TIMES_TRL.items():
        theirs = found.get(f"{largest}, mix, TRL {name}: pass")
        if mine and theirs:
            goal = target if largest == "8b" else None
            tell(f"{largest}, mix: times as fast as TRL {name}", theirs / mine, "", goal)
    for shape in others:
        run("ours", shape, *with_liger)
    if has_liger:
        run("ours", largest, "--brief")
    return int(not agrees)


if __name__ == "__main__":
    sys.exit(main())
