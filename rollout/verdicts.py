"""What ``rollout`` reads of a verifier's verdict."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol


class Verdict(Protocol):
    """The part of a scorer's verdict that ``rollout`` reads."""

    @property
    def status(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def is_correct(self) -> bool: ...


def grounds(verdict: Verdict) -> dict[str, str]:
    """Returns ``found_by``, how the answer was found, and ``reason``, each if the verifier told and it is not
    empty; for records of the rollout."""
    told = {name: str(getattr(verdict, name, "") or "") for name in ("found_by", "reason")}
    return {name: text for name, text in told.items() if text}


def value_of(verdict: Verdict) -> float | None:
    """Returns the number behind a verdict, if the verifier has one: what a custom reward returned."""
    return getattr(verdict, "value", None)


def measures_of(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Returns the sums of the verdicts' ``measures`` by name, such as a judging model's tokens; empty for a
    verifier that costs nothing beyond the machine's time."""
    sums: Counter[str] = Counter()
    for verdict in verdicts:
        sums.update(getattr(verdict, "measures", {}))
    return dict(sums)
