"""What happens when an optimizer step is refused because loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from train.optimizer import StepOutcome
from train.rows import Row

MAX_REFUSED_STEPS = 3
"""So many refused optimizer steps in a row stop the run."""


class RefusalGuard:
    """Counts refused steps in a row and keeps their batches for inspection."""

    def __init__(self, directory: Path, note: Callable[[str], None] | None) -> None:
        """``note`` tells the reader; None on ranks that neither write nor speak."""
        self._directory = directory
        self._note = note
        self._in_a_row = 0

    def check(self, outcome: StepOutcome, rows: Sequence[Row], step: int) -> None:
        """Takes note of one optimizer step on ``rows``.

        Raises:
            RuntimeError: At the third refused step in a row.
        """
        if outcome.applied:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._note is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            saved = self._directory / f"step_{step:06d}.pt"
            torch.save(list(rows), saved)
            self._note(f"Loss or gradient is not finite in step {step}; no update was made. Batch: {saved}")
        if self._in_a_row >= MAX_REFUSED_STEPS:
            raise RuntimeError(
                f"Loss or gradient was not finite {self._in_a_row} times in a row, at last in step {step}. "
                f"None of these updates was made; the batches are in {self._directory}. "
                "Lower algo.learning_rate, or look for sampler_logprobs that are far from the policy's."
            )
