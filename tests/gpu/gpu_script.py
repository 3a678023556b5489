"""What the scripts of this folder share: their options, and how they print a figure."""

import argparse
from collections.abc import Callable
from pathlib import Path

from gpu_figures import Line

Tell = Callable[..., None]
"""``tell(name, value, unit="", target=None)`` prints one figure at once."""


def options_of(doc: str) -> argparse.Namespace:
    """Reads the options that every part takes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--model", type=Path, help="HF folder; only the part that trains takes it")
    return parser.parse_args()


def teller(part: str) -> Tell:
    """Returns the function with which a part prints its figures."""

    def tell(name: str, value: float | bool | str, unit: str = "", target: float | None = None) -> None:
        print(Line(part, name, value, unit, target).json(), flush=True)

    return tell
