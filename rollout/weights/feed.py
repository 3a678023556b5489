"""Hands weights from the trainer's thread to the senders', a bucket at a time.

While one bucket is sent the trainer gathers the next, and no more than ``AHEAD`` buckets wait on the device.
A worker that failed or is restarted gets its buckets from the trainer's own weights, read once more, until
these change. So no copy of them is kept.
"""

import threading
import time
from collections.abc import Callable, Sequence

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
        again: Callable[[int], Sequence[Tensor]],
    ) -> None:
        """Prepares the feed.

        Args:
            entries: Descriptions of all weights, in the order of reading.
            bucket_bytes: Size of a bucket.
            device: Device that buckets are sent from.
            again: See ``WeightSource``.
        """
        self.entries = list(entries)
        self.bucket_bytes = bucket_bytes
        self.device = device
        self.buckets = list(buckets(self.entries, bucket_bytes))
        self._again = again
        self._put = 0
        self._holders = 0
        """Senders that must not lose the weights before they have ended."""
        self._has_changed = False
        self._waiting: dict[int, Tensor] = {}
        """Buckets on the device that the first sender has not sent yet."""
        self._is_read = True
        """True while a first sender may still come for the buckets on the device."""
        self._failure = ""
        self._changed = threading.Condition()

    @property
    def is_whole(self) -> bool:
        """True if every bucket was put, so that ``bucket`` returns at once."""
        return self._put == len(self.buckets)

    @property
    def failure(self) -> str:
        """Reason why the feed will never be whole; empty otherwise."""
        return self._failure

    def put(self, weights: Sequence[Tensor]) -> None:
        """Adds the next bucket; waits until the device has room for it, or no sender reads any more."""
        index = self._put
        packed = self._packed(weights, index)
        with self._changed:
            self._put += 1
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
            RuntimeError: If the trainer fails, takes longer than ``seconds`` or has changed the weights, or
                ``given_up`` is set.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._put <= index:
                if self._failure:
                    raise RuntimeError(f"the trainer could not gather its weights: {self._failure}")
                if given_up.is_set():
                    raise RuntimeError("the transfer of weights was given up")
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the trainer gathered {self._put} of {len(self.buckets)} buckets of weights, "
                        f"and no further one within {seconds:g} s"
                    )
                self._changed.wait(0.02)
            waiting = self._waiting.get(index)
        if waiting is not None:
            return waiting
        packed = self._packed(self._again(index), index)
        if self._has_changed:  # looked at afterwards: they may have changed while they were read
            raise RuntimeError("the trainer has begun to change the weights of this version")
        return packed

    def hold(self) -> bool:
        """Keeps the weights as they are until ``release``; returns False if they have changed already."""
        with self._changed:
            self._holders += not self._has_changed
            return not self._has_changed

    def release(self) -> None:
        """Ends a ``hold``."""
        with self._changed:
            self._holders -= 1
            self._changed.notify_all()

    def weights_will_change(self, seconds: float) -> None:
        """Waits at most ``seconds`` for those who ``hold``; a bucket is read again no more after that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._holders, seconds)
            self._has_changed = True

    def sent(self, index: int) -> None:
        """Frees the device's copy of a bucket that the first sender has sent."""
        with self._changed:
            self._waiting.pop(index, None)
            self._changed.notify_all()

    def stop_reading(self) -> None:
        """Frees the device's copies when the first sender has ended."""
        with self._changed:
            self._is_read = False
            self._waiting.clear()
            self._changed.notify_all()

    def _packed(self, weights: Sequence[Tensor], index: int) -> Tensor:
        packed = pack(weights, self.buckets[index], self.device)
        if packed.is_cuda:  # other threads and processes read it on streams of their own
            torch.cuda.current_stream(packed.device).synchronize()
        return packed
