"""Rank 0 reads published weights once more under ZeRO-3, whatever the trainers' threads do meanwhile.

A worker that failed or is restarted needs weights that were published before, and no rank holds them whole.
From a publish until the weights change, the other ranks lend rank 0 their shards: each in a thread of its
own, over a gloo group that nothing else uses. So no rank keeps a copy, and the order of the collectives of
the trainers' threads stays the same on all ranks.
"""

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch import distributed as dist

from train.distributed import WORD_SECONDS
from train.zero3_shards import packed_shards, whole_from

END = -1
"""Told instead of a bucket's index when nothing more will be borrowed."""
HOST = torch.device("cpu")


class Zero3Loans:
    """One rank's end; every rank makes one, and calls ``lend`` and ``end`` as the others do."""

    def __init__(self, accelerator: Accelerator, timeout_seconds: float) -> None:
        """Forms the group, a collective. ``timeout_seconds`` limits the transfer of one bucket."""
        self._device = accelerator.device
        self._ranks = accelerator.num_processes
        self._is_main = accelerator.is_main_process
        self._limit = timedelta(seconds=timeout_seconds)
        self._buckets: Sequence[Sequence[nn.Parameter]] | None = None
        self._lock = threading.Lock()
        self._lender: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._group: dist.ProcessGroup | None = None
        if self._ranks > 1:
            # A lender waits as long as the weights stay; lost ranks are noticed by ``train.lifelines``.
            made = dist.new_group(backend="gloo", timeout=timedelta(seconds=WORD_SECONDS))
            self._group = cast(dist.ProcessGroup, made)

    def lend(self, buckets: Sequence[Sequence[nn.Parameter]]) -> None:
        """Lends this rank's shards of each bucket's parameters until ``end``."""
        self.end()
        self._buckets = buckets
        if not self._is_main:
            self._lender = threading.Thread(target=self._serve, args=(buckets,), daemon=True, name="shards")
            self._lender.start()

    def borrow(self, index: int) -> list[Tensor]:
        """Returns the whole parameters of a bucket; on rank 0 alone, from any thread.

        Raises:
            RuntimeError: If nothing is lent any more, or another rank does not send within the time limit.
        """
        with self._lock:
            if self._buckets is None or self._failure is not None:
                raise RuntimeError("the ranks no longer lend the weights of this version")
            parameters = self._buckets[index]
            mine = packed_shards(parameters, HOST)
            packed = mine.new_empty(self._ranks, mine.numel())
            try:
                self._gather(index, mine, packed)
            except RuntimeError as error:  # what the others wait for is unknown from now on
                self._failure = error
                raise RuntimeError(
                    f"the other ranks did not send their shards of bucket {index} within "
                    f"{self._limit.total_seconds():g} s (train.collective_timeout_seconds): {error}"
                ) from error
        return whole_from(parameters, packed.to(self._device))

    def end(self) -> None:
        """Takes the shards back, on every rank, before the weights change; no-op if none are lent.

        Rank 0's call ends what it borrows; another rank's waits for it.

        Raises:
            RuntimeError: If a transfer failed: ranks that do not answer cannot train together.
        """
        if self._lender is not None:
            self._lender.join()
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"shards could not be lent to rank 0: {self._failure}") from self._failure
            if self._buckets is not None and self._is_main and self._group is not None:
                self._tell(END)
            self._buckets = self._lender = None

    def _gather(self, index: int, mine: Tensor, packed: Tensor) -> None:
        if self._group is None:
            packed[0] = mine
            return
        self._tell(index)
        sent = dist.gather(mine, list(packed), dst=0, group=self._group, async_op=True)
        assert sent is not None
        sent.wait(self._limit)

    def _tell(self, index: int) -> None:
        told = dist.broadcast(torch.tensor([index]), src=0, group=self._group, async_op=True)
        assert told is not None
        told.wait(self._limit)

    def _serve(self, buckets: Sequence[Sequence[nn.Parameter]]) -> None:
        try:
            wanted = torch.empty(1, dtype=torch.int64)
            while True:
                dist.broadcast(wanted, src=0, group=self._group)
                if (index := int(wanted)) == END:
                    return
                dist.gather(packed_shards(buckets[index], HOST), dst=0, group=self._group)
        except Exception as error:  # raised by ``end``
            self._failure = error
