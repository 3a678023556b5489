"""rollouts.jsonl: every finished rollout, appended as it ends, so that an evaluation can be continued."""

import json
from pathlib import Path

from rollout.evaluate import Outcome, read_outcomes, rollout_to_json
from rollout.records import Rollout


class Journal:
    """An append-only file of rollouts. Use as a context manager.

    What a killed run left behind is read on entry: ``outcomes`` holds the finished rollouts, and a
    last line that was cut is dropped from the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._drop_cut_line()
            self.outcomes = read_outcomes(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, outcome: Outcome, rollout: Rollout) -> None:
        """Appends one rollout."""
        self.outcomes.append(outcome)
        self._file.write(json.dumps(rollout_to_json(outcome, rollout)) + "\n")
        self._file.flush()

    def _drop_cut_line(self) -> None:
        with self._path.open("rb+") as file:
            size = file.seek(0, 2)
            step = 1 << 16
            end = size
            while end > 0:
                start = max(0, end - step)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    file.truncate(start + newline + 1)
                    return
                end = start
            file.truncate(0)
