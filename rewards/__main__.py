"""``python -m rewards score IN.jsonl OUT.jsonl``.

Exit status: 0 on success; 1 if a line is broken, there are no lines, or too many checks ended in ``timeout``
or ``error``; 2 if the command could not run. Gold answers of a data set: ``python -m rollout.problems``.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from rewards.answers.extract import FORMS
from rewards.files import score_file
from rewards.scorer import Scorer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rewards",
        description="Check answers in files.",
        epilog="The gold answers and questions of a data set: python -m rollout.problems data.path=FILE",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="add a verdict to each line (fields: gold, pred)")
    score.add_argument("source", type=Path, metavar="IN.jsonl")
    score.add_argument("target", type=Path, metavar="OUT.jsonl")
    score.add_argument(
        "--forms",
        default="all",
        help=f"answers outside a box: all, none, or a comma-separated choice of {', '.join(FORMS)}",
    )
    score.add_argument("--num-workers", type=int, default=2, help="processes (default 2)")
    score.add_argument("--limit-seconds", type=float, default=3.0, help="per answer (default 3)")
    score.add_argument("--memory-limit-mb", type=int, default=1024, help="per process (default 1024)")
    score.add_argument(
        "--max-failure-share", type=float, default=0.02, help="of timeout + error (default 0.02)"
    )
    return parser


def _score(options: argparse.Namespace) -> int:
    named = {"all": FORMS, "none": ()}
    forms = named.get(options.forms, tuple(part.strip() for part in options.forms.split(",")))

    async def run() -> int:
        async with Scorer(
            forms=forms,
            num_workers=options.num_workers,
            limit_seconds=options.limit_seconds,
            memory_limit_mb=options.memory_limit_mb,
            max_failure_share=options.max_failure_share,
        ) as scorer:
            counts, num_broken = await score_file(options.source, options.target, scorer)
            failed = scorer.failure_share > options.max_failure_share
        total = sum(counts.values())
        print(f"{total} scored, {num_broken} broken lines, {counts['correct'] / max(1, total):.2%} correct")
        print(", ".join(f"{status} {number}" for status, number in counts.items()))
        return int(bool(num_broken) or failed or not total)

    return asyncio.run(run())


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    options = _parser().parse_args(arguments)
    if not options.source.is_file():
        print(f"{options.source} is not a file; pass a file of JSON lines.", file=sys.stderr)
        return 2
    try:
        return _score(options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
