"""Weights in buckets: many weights in one flat tensor, so that a small one costs no transfer of its own."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BUCKET_BYTES = {"nccl": 2**29, "ipc": 2**29, "gloo": 2**26}
"""Bytes of a bucket by ``rollout.weight_transfer``: 512 MiB on a GPU, 64 MiB (measured) on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """Description of one weight, which the receiver needs before the transfer."""

    name: str
    dtype: str
    """Name in torch, such as ``bfloat16``."""
    shape: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


class WeightSource(Protocol):
    """Whole weights that can be read once, a few at a time."""

    @property
    def entries(self) -> Sequence[WeightEntry]:
        """Descriptions of all weights, in the order of reading, known before the first is read."""
        ...

    @property
    def bucket_bytes(self) -> int:
        """Size of the buckets."""
        ...

    def parts(self) -> Iterator[Sequence[Tensor]]:
        """Yields the weights of each of ``buckets(entries, bucket_bytes)``; they are valid until the next."""
        ...

    def again(self, index: int) -> Sequence[Tensor]:
        """Reads the weights of the bucket of an index once more, from any thread.

        They are right until the weights change.

        Raises:
            RuntimeError: If they cannot be read any more.
        """
        ...


def entry_of(name: str, dtype: torch.dtype, shape: Iterable[int]) -> WeightEntry:
    """Returns the description of a weight."""
    return WeightEntry(name=name, dtype=str(dtype).removeprefix("torch."), shape=tuple(shape))


def by_dtype(entries: Iterable[WeightEntry]) -> list[WeightEntry]:
    """Returns the entries with equal dtypes beside one another, else in their order, as ``buckets`` wants."""
    return sorted(entries, key=lambda entry: entry.dtype)


def buckets(entries: Sequence[WeightEntry], bucket_bytes: int) -> Iterator[list[WeightEntry]]:
    """Yields consecutive entries of one dtype; only a single larger entry exceeds ``bucket_bytes``.

    One dtype, because then every weight in a bucket begins at a multiple of its element's size.
    """
    held: list[WeightEntry] = []
    size = 0
    for entry in entries:
        if held and (size + entry.num_bytes > bucket_bytes or entry.dtype != held[0].dtype):
            yield held
            held, size = [], 0
        held.append(entry)
        size += entry.num_bytes
    if held:
        yield held


def room_for(bucket: Sequence[WeightEntry], device: torch.device) -> Tensor:
    """Returns an uninitialised uint8 tensor that holds a bucket."""
    return torch.empty(sum(entry.num_bytes for entry in bucket), dtype=torch.uint8, device=device)


def views(packed: Tensor, bucket: Sequence[WeightEntry]) -> Iterator[Tensor]:
    """Yields the weights of a bucket as views of ``packed``, which ``room_for`` made."""
    start = 0
    for entry in bucket:
        flat = packed[start : start + entry.num_bytes]
        yield flat.view(getattr(torch, entry.dtype)).view(tuple(entry.shape))
        start += entry.num_bytes


def pack(weights: Sequence[Tensor], bucket: Sequence[WeightEntry], device: torch.device) -> Tensor:
    """Returns a copy of the weights of a bucket as one uint8 tensor on ``device``."""
    packed = room_for(bucket, device)
    for weight, view in zip(weights, views(packed, bucket), strict=True):
        view.copy_(weight)
    return packed
