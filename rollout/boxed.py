"""Short answers inside a box, as verifications and selections end: yes or no, or the number of a solution."""

import re


def boxed_yes(text: str) -> int:
    """Returns 1 if the last boxed yes or no is yes, -1 for no, 0 if there is none."""
    boxed = re.findall(r"\\boxed\s*\{\s*(?:\\text\{)?\s*(yes|no)\b", text, re.I)
    return 0 if not boxed else 1 if boxed[-1].lower() == "yes" else -1


def boxed_number(text: str, most: int) -> int | None:
    """Returns the number in the last box, also beside a word (``Draft 2``).

    None if that box holds no number or several, or one that does not lie between 1 and ``most``.
    """
    boxed = re.findall(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text)
    numbers = re.findall(r"\d+", boxed[-1]) if boxed else []
    return int(numbers[0]) if len(numbers) == 1 and 1 <= int(numbers[0]) <= most else None
