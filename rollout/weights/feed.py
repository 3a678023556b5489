"""Hands weights from the trainer's thread to the senders', a bucket at a time, and keeps a copy on the host.

While one bucket is sent the trainer gathers the next, and no device holds more than ``AHEAD`` buckets. The
copy is what a worker gets that is restarted, or that failed: the trainer's own weights change meanwhile.
"""

import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.weights.buckets import WeightEntry, buckets, pack

AHEAD = 2
"""Buckets on the device at once: one that is sent and one that waits for it."""
LOOK_SECONDS = 0.5
"""Interval at which a waiting trainer looks whether the sender has ended."""


class Feed:
    """One version's weights. The trainer's thread calls ``put`` and ``end``; any thread may read."""

    def __init__(
        self,
        entries: Sequence[WeightEntry],
        bucket_bytes: int,
        device: torch.device,
        before: "Feed | None" = None,
    ) -> None:
        """Prepares the feed.

        Args:
            entries: Descriptions of all weights, in the order of reading.
            bucket_bytes: Size of a bucket.
            device: Device that buckets are sent from.
            before: The previous version's feed, whose pinned memory is taken over; it is unusable then.
        """
        self.entries = list(entries)
        self.bucket_bytes = bucket_bytes
        self.device = device
        self.buckets = list(buckets(self.entries, bucket_bytes))
        self._spare = before._kept if before is not None and before.buckets == self.buckets else []
        self._kept: list[Tensor] = []
        self._waiting: dict[int, Tensor] = {}
        """Buckets on the device that the first sender has not sent yet."""
        self._is_read = True
        """True while a first sender may still come for the buckets on the device."""
        self._failure = ""
        self._changed = threading.Condition()

    @property
    def is_whole(self) -> bool:
        """True if every bucket was put, so that ``bucket`` returns at once."""
        return len(self._kept) == len(self.buckets)

    @property
    def failure(self) -> str:
        """Reason why the feed will never be whole; empty otherwise."""
        return self._failure

    def put(self, weights: Sequence[Tensor]) -> None:
        """Adds the next bucket; waits until the device has room for it, or no sender reads any more."""
        index = len(self._kept)
        packed = pack(weights, self.buckets[index], self.device)
        kept = self._copied(packed, index)
        with self._changed:
            self._kept.append(kept)
            if self._is_read:
                self._waiting[index] = packed
            self._changed.notify_all()
            while self._is_read and len(self._waiting) >= AHEAD:
                self._changed.wait(LOOK_SECONDS)

    def fail(self, reason: str) -> None:
        """Tells the senders that no further bucket will come; no-op if the feed is whole."""
        with self._changed:
            self._failure = "" if self.is_whole else reason
            self._changed.notify_all()

    def bucket(self, index: int, seconds: float, given_up: threading.Event) -> Tensor:
        """Returns a bucket on the device; waits until the trainer has put it.

        Raises:
            RuntimeError: If the trainer fails, takes longer than ``seconds``, or ``given_up`` is set.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self._kept) <= index:
                if self._failure:
                    raise RuntimeError(f"the trainer could not gather its weights: {self._failure}")
                if given_up.is_set():
                    raise RuntimeError("the transfer of weights was given up")
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the trainer gathered {len(self._kept)} of {len(self.buckets)} buckets of weights, "
                        f"and no further one within {seconds:g} s"
                    )
                self._changed.wait(0.02)
            waiting = self._waiting.get(index)
        return waiting if waiting is not None else self._kept[index].to(self.device)

    def sent(self, index: int) -> None:
        """Frees the device's copy of a bucket that the first sender has sent."""
        with self._changed:
            self._waiting.pop(index, None)
            self._changed.notify_all()

    def stop_reading(self) -> None:
        """Frees the device's copies, when the first sender has ended; later ones read the host's."""
        with self._changed:
            self._is_read = False
            self._waiting.clear()
            self._changed.notify_all()

    def _copied(self, packed: Tensor, index: int) -> Tensor:
        if packed.device.type == "cpu":
            return packed  # never written again: it is the copy
        # Pinned: several times the speed of pageable memory. Making it takes long, so it is taken over.
        spare = self._spare[index : index + 1]
        host = spare[0] if spare else torch.empty_like(packed, device="cpu", pin_memory=True)
        host.copy_(packed, non_blocking=True)
        torch.cuda.current_stream(packed.device).synchronize()
        return host
