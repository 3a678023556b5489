"""Handles optimizer steps that are refused because loss or gradient is not finite."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from train.batch.rows import Row
from train.sharding import StepOutcome

MAX_REFUSED_STEPS = 3
"""This many refused optimizer steps in a row stop the run."""


class RefusalGuard:
    """Counts refused steps in a row and saves their batches for inspection."""

    def __init__(self, directory: Path, note: Callable[[str], None] | None) -> None:
        """``note`` prints a message to the user; None on ranks that neither save nor print."""
        self._directory = directory
        self._note = note
        self._in_a_row = 0

    def check(self, outcomes: Mapping[str, StepOutcome], rows: Sequence[Row], step: int) -> None:
        """Checks one optimizer step of each model on ``rows``.

        Raises:
            RuntimeError: At the ``MAX_REFUSED_STEPS``-th refused step in a row.
        """
        refused = [name for name, outcome in outcomes.items() if not outcome.applied]
        if not refused:
            self._in_a_row = 0
            return
        what = f"Loss or gradient of the {' and the '.join(refused)}"
        self._in_a_row += 1
        if self._note is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            saved = self._directory / f"step_{step:06d}.pt"
            torch.save(list(rows), saved)
            self._note(f"{what} is not finite in step {step}; the update was skipped. Batch: {saved}")
        if self._in_a_row >= MAX_REFUSED_STEPS:
            raise RuntimeError(
                f"{what} was not finite {self._in_a_row} times in a row, most recently in step {step}. "
                f"These updates were skipped; the batches are in {self._directory}. "
                "Lower algo.learning_rate, or look for sampler_logprobs that are far from the policy's."
            )
