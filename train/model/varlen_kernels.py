"""Attention within packed sequences of varying length: FlashAttention on a GPU, torch's own on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Boundaries of the sequences in a packed tensor."""

    starts: Tensor
    """First position of each sequence and the end of the last one, int32, shape ``(number + 1,)``."""
    lengths: tuple[int, ...]
    """Lengths of the sequences, all above 0."""


class Kernel(Protocol):
    """Attention within pairs of query and key sequences that are packed into one tensor each."""

    def forward(
        self, packed: Sequence[Tensor], segments: tuple[Segments, Segments], *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Returns the output, shape of the queries, and its log-sum-exp, fp32, shape ``(heads, tokens)``.

        Args:
            packed: Queries, keys and values, shapes ``(tokens, heads, d)``.
            segments: Sequences of the queries and of the keys, equal in number.
            causal: True if a query sees keys up to its own position only.
            scale: Factor of the query-key products.
        """
        ...

    def backward(
        self,
        gradient: Tensor,
        packed: Sequence[Tensor],
        results: tuple[Tensor, Tensor],
        segments: tuple[Segments, Segments],
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of ``packed``; ``results`` are the output and the log-sum-exp."""
        ...


class FlashKernel:
    """FlashAttention as built into torch; bfloat16 and float16 on a GPU."""

    def forward(
        self, packed: Sequence[Tensor], segments: tuple[Segments, Segments], *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernel``."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *packed, *_bounds(segments), 0.0, causal, False, scale=scale
        )
        return out, lse

    def backward(
        self,
        gradient: Tensor,
        packed: Sequence[Tensor],
        results: tuple[Tensor, Tensor],
        segments: tuple[Segments, Segments],
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernel``."""
        # State of the dropout, which is 0.
        state = torch.zeros(2, dtype=torch.uint64, device=gradient.device)
        unused = torch.empty(0, device=gradient.device)
        return torch.ops.aten._flash_attention_backward(
            gradient, *packed, *results, *_bounds(segments), 0.0, causal, state, unused, scale=scale
        )


def _bounds(segments: tuple[Segments, Segments]) -> tuple[Tensor, Tensor, int, int]:
    queries, keys = segments
    return queries.starts, keys.starts, max(queries.lengths), max(keys.lengths)


class CpuKernel:
    """The same by torch's CPU attention, one pair of sequences at a time."""

    def forward(
        self, packed: Sequence[Tensor], segments: tuple[Segments, Segments], *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernel``."""
        outs, sums = [], []
        for query, key, value in self._pairs(packed, segments):
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, causal, scale=scale
            )
            outs.append(out[0].transpose(0, 1))
            sums.append(lse[0])
        # (1, heads, tokens of a sequence) -> (heads, tokens)
        return torch.cat(outs), torch.cat([lse.reshape(packed[0].shape[1], -1) for lse in sums], dim=1)

    def backward(
        self,
        gradient: Tensor,
        packed: Sequence[Tensor],
        results: tuple[Tensor, Tensor],
        segments: tuple[Segments, Segments],
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernel``."""
        lengths = segments[0].lengths
        heads, key_heads = packed[0].shape[1], packed[1].shape[1]
        grads, outs = (_split(x, lengths) for x in (gradient, results[0]))
        sums = results[1].split(lengths, dim=1)
        found: list[tuple[Tensor, ...]] = []
        for grad, out, lse, qkv in zip(grads, outs, sums, self._pairs(packed, segments), strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, *qkv, out, lse[None].contiguous(), 0.0, causal, scale=scale
            )
            found.append(tuple(part[0].transpose(0, 1) for part in parts))
        of_query, of_key, of_value = (torch.cat(parts) for parts in zip(*found, strict=True))
        # Each key head served several query heads.
        shape = (key_heads, heads // key_heads)
        return of_query, of_key.unflatten(1, shape).sum(2), of_value.unflatten(1, shape).sum(2)

    def _pairs(
        self, packed: Sequence[Tensor], segments: tuple[Segments, Segments]
    ) -> list[tuple[Tensor, ...]]:
        """Returns query, key and value of each pair, all of shape ``(1, heads, tokens, d)``."""
        query, key, value = packed
        repeat = query.shape[1] // key.shape[1]
        queries, keys = segments
        columns = [_split(query, queries.lengths)]
        columns += [_split(x.repeat_interleave(repeat, 1), keys.lengths) for x in (key, value)]
        return list(zip(*columns, strict=True))


def _split(packed: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [part.transpose(0, 1)[None] for part in packed.split(list(lengths))]


def kernel_for(device: torch.device) -> Kernel:
    """Returns the kernel of a device."""
    return FlashKernel() if device.type == "cuda" else CpuKernel()
