"""Whole weights from DeepSpeed ZeRO-3's shards, a bucket of parameters by one collective.

``deepspeed.zero.GatheredParameters`` gathers each parameter by a collective of its own, also a norm's 8 KB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def whole_buckets(buckets: Sequence[Sequence[nn.Parameter]], device: torch.device) -> Iterator[list[Tensor]]:
    """Yields the whole values of each bucket; the next bucket is under way meanwhile. A collective.

    The parameters stay as they are, sharded or not.

    Raises:
        ValueError: If the shards are quantised, on NVMe, or split over a part of the ranks (ZeRO++).
    """
    coming: _Gather | None = None
    for bucket, after in zip(buckets, [*buckets[1:], None], strict=True):
        here = coming or _begin(bucket, device)
        whole = here.parts()
        coming = None if after is None else _begin(after, device)
        yield whole


@dataclass(frozen=True, slots=True)
class _Gather:
    """A bucket on its way to every rank."""

    parameters: Sequence[nn.Parameter]
    received: Tensor
    """The shards of all parameters of rank 0, then those of rank 1, ..., as bytes."""
    ranks: int
    work: Any

    def parts(self) -> list[Tensor]:
        """Waits for the bucket and returns the whole parameters."""
        if self.work is not None:
            self.work.wait()
        return whole_from(self.parameters, self.received.view(self.ranks, -1))


def packed_shards(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Returns a copy of this rank's shards of ``parameters``, one after another, as bytes on ``device``.

    Raises:
        ValueError: As ``whole_buckets``.
    """
    for parameter in parameters:
        _require_plain(parameter)
    return torch.cat([_bytes(parameter.ds_tensor, device) for parameter in parameters])  # pyright: ignore[reportAttributeAccessIssue]


def whole_from(parameters: Sequence[nn.Parameter], packed: Tensor) -> list[Tensor]:
    """Returns the whole parameters from every rank's ``packed_shards``: uint8, shape ``(ranks, bytes)``."""
    whole, start = [], 0
    for parameter in parameters:
        shard: Any = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
        stop = start + shard.ds_numel * shard.element_size()
        flat = packed[:, start:stop].contiguous().view(-1).view(shard.dtype)
        # The last rank's shard is padded.
        whole.append(flat[: parameter.ds_numel].view(parameter.ds_shape))  # pyright: ignore[reportAttributeAccessIssue]
        start = stop
    return whole


def _begin(parameters: Sequence[nn.Parameter], device: torch.device) -> _Gather:
    if not parameters:  # a bucket of buffers alone
        return _Gather((), torch.empty(0, dtype=torch.uint8), 1, None)
    group: Any = parameters[0].ds_process_group  # pyright: ignore[reportAttributeAccessIssue]
    mine = packed_shards(parameters, device)
    ranks = dist.get_world_size(group)
    received = torch.empty(ranks * mine.numel(), dtype=torch.uint8, device=device)
    work = dist.all_gather_into_tensor(received, mine, group=group, async_op=True)
    return _Gather(parameters, received, ranks, work)


def _bytes(shard: Tensor, device: torch.device) -> Tensor:
    # Only towards a GPU: a copy to pageable host memory must have ended when it is read.
    return (
        shard.detach().to(device, non_blocking=device.type == "cuda").contiguous().view(-1).view(torch.uint8)
    )


def _require_plain(parameter: Any) -> None:
    shard = parameter.ds_tensor
    if (
        getattr(parameter, "ds_secondary_tensor", None) is not None
        or hasattr(shard, "ds_quant_scale")
        or shard.numel() != shard.ds_numel
    ):
        raise ValueError(
            "ZeRO-3's shards are quantised, hierarchical (ZeRO++) or on NVMe, and weights cannot be gathered "
            "from them. Leave out zero_quantized_weights, zero_hpz_partition_size and "
            "offload_param.device=nvme."
        )
