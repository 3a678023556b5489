"""Stores the rollouts of the steps since the last checkpoint, so that none has to be sampled twice.

A killed run resumes from its last checkpoint and reads the rollouts that it had finished, those of steps
collected ahead included. It therefore repeats the same steps, although a sampler's rounding or timing could
have led to other samples the second time.
"""

import logging
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import msgspec

from rollout.records import Call, Problem, Rollout

logger = logging.getLogger(__name__)

V = TypeVar("V")
HEADER = struct.Struct("<QI")
SETTINGS = "settings.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRollout(Generic[V]):
    """A ``Rollout`` with a concrete class of verdicts, which the decoder needs."""

    problem: Problem
    operator: str
    calls: tuple[Call, ...]
    answers: tuple[int, ...]
    waited_for: tuple[int, ...]
    verdicts: dict[int, V]
    counts: dict[str, int]

    def rollout(self) -> Rollout:
        """Returns the original rollout."""
        return Rollout(**{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProblem(Generic[V]):
    """The rollouts of one place in a step (refill, place and problem)."""

    place: str
    rollouts: list[StoredRollout[V]]


class Replay:
    """One file per step, appended to as rollouts end.

    A record is its length (8 bytes, little-endian), its CRC-32 (4 bytes) and one ``StoredProblem`` in
    msgpack. The first record that is not as it was written (cut off by a kill, or damaged) is dropped with
    all later ones, with a warning; their rollouts are sampled again.
    """

    def __init__(self, folder: Path, settings: str, verdict_type: type) -> None:
        """Stores rollouts in ``folder``.

        Args:
            folder: Created if it does not exist.
            settings: Text of the options that decide how rollouts are sampled; rollouts of other settings
                are removed.
            verdict_type: Dataclass of the verdicts.
        """
        self._folder = folder
        self._decoder = msgspec.msgpack.Decoder(StoredProblem[verdict_type])
        self._file: BinaryIO | None = None
        self._appends_to: Path | None = None
        self._found: dict[int, dict[str, list[Rollout]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / SETTINGS
        if not said.is_file() or said.read_bytes() != settings.encode():
            self.clear()
            said.write_bytes(settings.encode())

    def start(self, after_step: int) -> list[int]:
        """Resumes a run that made ``after_step`` steps; returns the steps that have stored rollouts.

        Without rollouts of the very next step all are removed: behind a gap the policy would no longer be
        the one that sampled them.
        """
        self.forget(after_step)
        if after_step + 1 not in self._steps():
            self.clear()
        return self._steps()

    def clear(self) -> None:
        """Removes all rollouts, for a run that starts from the beginning."""
        self._remove(self._steps())
        self._found.clear()

    def find(self, step: int, place: str) -> list[Rollout] | None:
        """Returns the rollouts that an earlier process of this run finished at ``place``; None if none."""
        if step not in self._found:
            self._found[step] = self._read(self._path(step))
        return self._found[step].get(place)

    def add(self, step: int, place: str, rollouts: Sequence[Rollout]) -> None:
        """Appends the finished rollouts of one place."""
        entry = {"place": place, "rollouts": [_plain(rollout) for rollout in rollouts]}
        data = msgspec.msgpack.encode(entry)
        file = self._open(self._path(step))
        file.write(HEADER.pack(len(data), zlib.crc32(data)) + data)
        file.flush()

    def forget(self, until_step: int) -> None:
        """Removes the rollouts of the steps up to ``until_step``, which a checkpoint covers."""
        self._remove([step for step in self._steps() if step <= until_step])
        self._found = {step: found for step, found in self._found.items() if step > until_step}

    def close(self) -> None:
        """Closes the open file; no-op if there is none."""
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
        size = path.stat().st_size
        whole = 0
        with path.open("rb+") as file:
            while len(head := file.read(HEADER.size)) == HEADER.size:
                length, checksum = HEADER.unpack(head)
                # A damaged length may be of any size: never read more than there is.
                data = file.read(min(length, size))
                if len(data) != length or zlib.crc32(data) != checksum:
                    break
                try:
                    yield self._decoder.decode(data)
                except msgspec.MsgspecError:  # another version's record
                    break
                whole = file.tell()
            if whole < size:
                logger.warning(
                    "%s: bytes %d to %d are no whole record (a kill cut it off, or the file was damaged); "
                    "what they held is sampled again.",
                    path,
                    whole,
                    size,
                )
            # Later records would follow an incomplete one and could not be read.
            file.truncate(whole)


def _plain(rollout: Rollout) -> dict[str, object]:
    # Shallow: ``asdict`` would copy every token; msgspec encodes the nested dataclasses itself.
    return {item.name: getattr(rollout, item.name) for item in fields(rollout)}
