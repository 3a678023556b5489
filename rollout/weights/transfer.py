"""Weight transfer by broadcast: NCCL between GPUs; gloo, by the same code, on CPUs.

One group holds the sender and every process of every worker, so the sender sends each bucket once, whatever
the number of workers. While one bucket is in transit the trainer gathers the next and receivers load the
previous one. Every wait has a limit of its own, after which the side raises and leaves the group. After a
transfer without failure both sides may keep the group for the next one (``Meeting.is_kept``).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from rollout.weights.buckets import WeightEntry, buckets, room_for, views
from rollout.weights.feed import Feed
from rollout.weights.meeting import SENDER, GivenUp, Meeting, Member, join, named, wait_until


def failed_key(meeting: Meeting) -> str:
    """Returns the key that a member sets in the store when it fails, so that the others end at once."""
    return f"{meeting.transfer}/failed"


def done_key(meeting: Meeting, rank: int) -> str:
    """Returns the key that a receiver sets in the store when it has all weights."""
    return f"{meeting.transfer}/done/{rank}"


def send(
    feed: Feed, member: Member, meeting: Meeting, names: Mapping[int, str], given_up: threading.Event
) -> None:
    """Sends all weights to the members of a group; blocks until they have them.

    Leaves the group, unless it is to be kept and the transfer succeeded.

    Args:
        feed: The weights; buckets that are not there yet are waited for.
        member: The sender's end, made by ``form``.
        meeting: The same as the receivers'.
        names: Worker of each receiver's rank, for the error.
        given_up: Set by the caller when a receiver is known to have failed.

    Raises:
        GivenUp: If ``given_up`` is set before all have all weights.
        RuntimeError: If a bucket or a receiver takes longer than ``meeting.seconds``.
    """

    def check() -> None:
        if given_up.is_set() or member.store.check([failed_key(meeting)]):
            raise GivenUp("a worker failed during the transfer of weights")

    if feed.device.type == "cuda":
        torch.cuda.set_device(feed.device)  # a thread starts on the first device
    sent: _Broadcast | None = None
    try:
        for index in range(len(feed.buckets)):
            packed = feed.bucket(index, meeting.seconds, given_up)
            coming = _Broadcast(member.group, packed, meeting.seconds)
            # One bucket in transit while the next is posted and the one after is gathered.
            if sent is not None:
                sent.wait(check)
                feed.sent(index - 1)
            sent = coming
        if sent is not None:
            sent.wait(check)
        # The group must outlive the last bucket's transit.
        missing = set(names)

        def all_done() -> bool:
            missing.difference_update(
                [rank for rank in missing if member.store.check([done_key(meeting, rank)])]
            )
            return not missing

        if not wait_until(all_done, meeting.seconds, check):
            raise RuntimeError(
                f"{named(missing, names)} did not report the arrival of all weights within "
                f"{meeting.seconds:g} s"
            )
    except BaseException:
        member.store.set(failed_key(meeting), "1")
        member.leave()
        raise
    if not meeting.is_kept:
        member.leave()


class Receiver:
    """One process of a worker; keeps its end of the group from one transfer to the next."""

    def __init__(self) -> None:
        """Starts without a group."""
        self._member: Member | None = None
        self._group = ""

    @property
    def group(self) -> str:
        """Name of the kept group; empty if there is none."""
        return self._group

    def receive(
        self, entries: Sequence[WeightEntry], meeting: Meeting, device: torch.device, place: int = 0
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields as the function ``receive`` does, over the kept group if it is that of ``meeting``.

        Raises:
            RuntimeError: As ``receive``, or if ``meeting`` is of an earlier group that this process lacks.
        """
        member, name = self._member, self._group
        self._member, self._group = None, ""
        if member is not None and name != meeting.group:
            member.leave()
            member = None
        if member is None and meeting.transfer:
            raise RuntimeError("this process has not kept the group of earlier transfers")
        member = member or join(meeting, place)
        yield from receive(entries, meeting, device, member, place)
        if meeting.is_kept:
            self._member, self._group = member, meeting.group


def receive(
    entries: Sequence[WeightEntry], meeting: Meeting, device: torch.device, member: Member, place: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yields names and weights as they arrive; each bucket has its own memory.

    Args:
        entries: Descriptions of all weights, as the sender's.
        meeting: The same as the sender's.
        device: Device to receive on.
        member: This process's end of the group; left, unless it is to be kept and the transfer succeeded.
        place: Number of this process among those of its worker.

    Raises:
        RuntimeError: If the sender does not send a bucket in time, or reports that another receiver failed.
    """

    def check() -> None:
        if member.store.check([failed_key(meeting)]):
            raise RuntimeError("the transfer of weights was given up: the sender or another worker failed")

    parcels = list(buckets(entries, meeting.bucket_bytes))
    coming: _Broadcast | None = None
    try:
        for bucket, after in zip(parcels, [*parcels[1:], None], strict=True):
            here = coming or _Broadcast(member.group, room_for(bucket, device), meeting.seconds)
            here.wait(check)
            # Posted before the caller loads this bucket, so that transit and loading overlap.
            coming = None
            if after is not None:
                coming = _Broadcast(member.group, room_for(after, device), meeting.seconds)
            yield from zip((entry.name for entry in bucket), views(here.packed, bucket), strict=True)
        member.store.set(done_key(meeting, meeting.first_rank + place), "1")
    except BaseException:
        with suppress(RuntimeError):  # the sender may have ended, and its store with it
            member.store.set(failed_key(meeting), "1")
        member.leave()
        raise
    if not meeting.is_kept:
        member.leave()


class _Broadcast:
    """A bucket in transit from the sender; ``packed`` is the source at the sender, else the target."""

    def __init__(self, group: Any, packed: Tensor, seconds: float) -> None:
        self.packed = packed
        self._seconds = seconds
        options = dist.BroadcastOptions()
        options.rootRank = SENDER
        self._work = group.broadcast([packed], options)

    def wait(self, check: Any) -> None:
        """Returns when the bucket has arrived, so far as this side can tell.

        Raises:
            RuntimeError: If it takes too long, the connection breaks, or ``check`` raises.
        """
        # The work is asked, not waited for: a wait in the library ends by the library's own rules, which for
        # NCCL are to block the stream for ever or to end the process.
        if not wait_until(self._work.is_completed, self._seconds, check):
            raise RuntimeError(f"a bucket of weights was in transit for more than {self._seconds:g} s")
        self._work.wait()  # raises what broke the transfer
        if self.packed.is_cuda:  # what loads it runs on another stream
            torch.cuda.current_stream(self.packed.device).synchronize()
