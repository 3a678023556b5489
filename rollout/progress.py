"""A bar that moves as rollouts end."""

from tqdm import tqdm

from rollout.evaluate import Sink
from rollout.outcome import Failure, Outcome
from rollout.records import Rollout


class Progress:
    """Hands rollouts on to another sink and shows how many there were. Use as a context manager."""

    def __init__(self, sink: Sink, *, title: str, total: int, done: int) -> None:
        self._sink = sink
        self._bar = tqdm(total=total, initial=done, unit="rollout", desc=title)
        self._failed = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, outcome: Outcome, rollout: Rollout) -> None:
        self._sink.add(outcome, rollout)
        self._bar.update()

    def add_failure(self, failure: Failure) -> None:
        self._sink.add_failure(failure)
        self._failed += 1
        self._bar.set_postfix(failed=self._failed)
        self._bar.update()
