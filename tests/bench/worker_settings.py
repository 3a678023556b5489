"""Bench: settings of a CPU worker, one changed at a time; configs/rollout/cpu.yaml holds what came of it.

    python tests/bench/worker_settings.py [--json] [--policy FOLDER] [--at-once 64] [--only SETTING ...]

Each worker answers single requests, so many at once, of the prompts and lengths of ``sampling.py``. Tokens
per second are the second round's, and with them come the seconds that the worker needed to start. `theirs`
is the first case.

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that the setting is better.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sampling import WORKER, make_policy, single_requests, through
from transformers import AutoTokenizer

from rollout.codec import Codec
from rollout.engine import RolloutEngine

SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "compiled": {"enforce_eager": False},
    "num_threads=2": {"num_threads": 2},
    "num_threads=2, compiled": {"num_threads": 2, "enforce_eager": False},
    "num_threads=2, kv_cache_gib=8": {"num_threads": 2, "kv_cache_gib": 8},
    "two workers": {"num_workers": 2},
    "num_threads=2, bfloat16": {"num_threads": 2, "dtype": "bfloat16"},
}
LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one setting."""

    start_seconds: float
    tokens_per_second: float


def measure(policy: Path, changes: dict[str, Any], at_once: int, requests: int, max_tokens: int) -> Speed:
    """Starts a worker with these settings and asks it."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(policy))
    config = replace(
        WORKER,
        **{"max_completion_length": max_tokens, "max_model_len": 1024, "max_num_seqs": at_once, **changes},
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as logs, RolloutEngine(config, str(policy), Path(logs)) as engine:
        start_seconds = time.perf_counter() - started

        def round_of(number: int, seed: int) -> float:
            asked = [
                (prompt, replace(sampling, max_tokens=max_tokens), n)
                for prompt, sampling, n in single_requests(codec, number, seed)
            ]
            started = time.perf_counter()
            tokens = engine.run(through(engine.pool.generate, asked), LIMIT_SECONDS, what="single requests")
            return tokens / (time.perf_counter() - started)

        round_of(at_once, 10**6)
        return Speed(start_seconds=start_seconds, tokens_per_second=round_of(requests, 0))


def main() -> int:
    """Measures every setting and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policy", type=Path, help="HF folder")
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=448)
    parser.add_argument("--only", nargs="+", choices=tuple(SETTINGS), help="these settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        policy = options.policy or Path(made)
        if options.policy is None:
            make_policy(policy)
        first: Speed | None = None
        for case in options.only or SETTINGS:
            changes = SETTINGS[case]
            try:
                speed = measure(policy, changes, options.at_once, options.requests, options.max_tokens)
            except (RuntimeError, ValueError) as error:
                print(f"{case}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            first = first or speed
            for name, unit in (("tokens_per_second", "tokens/s"), ("start_seconds", "s to start")):
                ours, theirs = getattr(speed, name), getattr(first, name)
                ratio = ours / theirs if unit == "tokens/s" else theirs / ours
                row = {"bench": "worker settings", "case": case, "ours": round(ours, 1)}
                row |= {"theirs": round(theirs, 1), "ratio": round(ratio, 2), "unit": unit}
                print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
