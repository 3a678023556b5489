"""What the scripts of this folder share: their options, and how they print a figure."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# For a script that is run by itself, without the project on PYTHONPATH; the tests' helpers are beside it.
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from gpu_figures import Line  # noqa: E402

Tell = Callable[..., None]
"""``tell(name, value, unit="", target=None)`` prints one figure at once."""


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Returns the parser of the options that every part takes, for a part that adds its own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--model", type=Path, help="HF folder in place of a random policy, where one is trained"
    )
    return parser


def options_of(doc: str) -> argparse.Namespace:
    """Reads the options that every part takes."""
    return parser_of(doc).parse_args()


def teller(part: str) -> Tell:
    """Returns the function with which a part prints its figures."""

    def tell(name: str, value: float | bool | str, unit: str = "", target: float | None = None) -> None:
        print(Line(part, name, value, unit, target).json(), flush=True)

    return tell
