"""Rollouts of the steps since the last checkpoint, kept on disk so that none has to be sampled twice.

A run that was killed goes on from its last checkpoint and is given the rollouts that it had finished, those
of steps collected ahead included. So it makes the steps that it had made, whatever a sampler's rounding or
timing would have given the second time.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import msgspec

from rollout.records import Call, Problem, Rollout

V = TypeVar("V")
LENGTH = struct.Struct("<Q")
SETTINGS = "settings.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRollout(Generic[V]):
    """``Rollout``, with the class of its verdicts."""

    problem: Problem
    operator: str
    calls: tuple[Call, ...]
    answers: tuple[int, ...]
    waited_for: tuple[int, ...]
    verdicts: dict[int, V]
    counts: dict[str, int]

    def rollout(self) -> Rollout:
        """As it was."""
        return Rollout(**{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProblem(Generic[V]):
    """What one place in a step gave."""

    place: str
    rollouts: list[StoredRollout[V]]


class Replay:
    """One file a step, appended to as rollouts end. What a kill cut off at its end is dropped."""

    def __init__(self, folder: Path, settings: str, verdict_type: type) -> None:
        """Keeps rollouts in ``folder``.

        Args:
            folder: Made if it is not there.
            settings: Names what decides how rollouts are sampled; those of other settings are removed.
            verdict_type: Dataclass of the verdicts.
        """
        self._folder = folder
        self._decoder = msgspec.msgpack.Decoder(StoredProblem[verdict_type])
        self._file: BinaryIO | None = None
        self._appends_to: Path | None = None
        self._found: dict[int, dict[str, list[Rollout]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / SETTINGS
        if not said.is_file() or said.read_text() != settings:
            self.clear()
            said.write_text(settings)

    def start(self, after_step: int) -> list[int]:
        """Takes up a run that made ``after_step`` steps; gives the steps that have rollouts.

        They are of use only if they follow on: behind a gap the policy is no longer that which made them.
        """
        self.forget(after_step)
        if after_step + 1 not in self._steps():
            self.clear()
        return self._steps()

    def clear(self) -> None:
        """Removes everything: a run begins anew."""
        self._remove(self._steps())
        self._found.clear()

    def find(self, step: int, place: str) -> list[Rollout] | None:
        """What an earlier process of this run finished there; None if nothing."""
        if step not in self._found:
            self._found[step] = self._read(self._path(step))
        return self._found[step].get(place)

    def add(self, step: int, place: str, rollouts: Sequence[Rollout]) -> None:
        """Keeps what was finished."""
        entry = {"place": place, "rollouts": [_plain(rollout) for rollout in rollouts]}
        data = msgspec.msgpack.encode(entry)
        file = self._open(self._path(step))
        file.write(LENGTH.pack(len(data)) + data)
        file.flush()

    def forget(self, until_step: int) -> None:
        """Removes the rollouts of steps that a checkpoint holds."""
        self._remove([step for step in self._steps() if step <= until_step])
        self._found = {step: found for step, found in self._found.items() if step > until_step}

    def close(self) -> None:
        """Closes the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = self._appends_to = None

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}.msgpack"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step_")) for path in self._folder.glob("step_*.msgpack"))

    def _remove(self, steps: Sequence[int]) -> None:
        self.close()
        for step in steps:
            self._path(step).unlink(missing_ok=True)

    def _open(self, path: Path) -> BinaryIO:
        if self._file is None or self._appends_to != path:
            self.close()
            self._file, self._appends_to = path.open("ab"), path
        return self._file

    def _read(self, path: Path) -> dict[str, list[Rollout]]:
        if not path.is_file():
            return {}
        self.close()
        return {entry.place: [stored.rollout() for stored in entry.rollouts] for entry in self._entries(path)}

    def _entries(self, path: Path) -> Iterator[StoredProblem]:
        whole = 0
        with path.open("rb+") as file:
            while len(head := file.read(LENGTH.size)) == LENGTH.size:
                data = file.read(LENGTH.unpack(head)[0])
                try:
                    yield self._decoder.decode(data)
                except msgspec.MsgspecError:
                    break
                whole = file.tell()
            file.truncate(whole)


def _plain(rollout: Rollout) -> dict[str, object]:
    return {item.name: getattr(rollout, item.name) for item in fields(rollout)}
