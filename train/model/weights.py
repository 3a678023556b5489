"""The policy's weights, whole and in buckets, for publishing and checkpoints.

Under ZeRO-3 a bucket is gathered by one collective, the next while the caller uses this one, and no device
holds more than its shard and a few buckets.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rollout.weights.buckets import WeightEntry, buckets, by_dtype, entry_of
from train.model.lora import Weight, adapter_config, adapter_parameters, merged_weights
from train.sharding import Sharding

HOST_BUCKET_BYTES = 2**28
"""Bytes gathered at once for the host's memory."""


@dataclass(frozen=True, slots=True)
class _Item:
    entry: WeightEntry
    weight: Weight | None
    buffer: Tensor | None = None

    def value(self, whole: Iterator[Tensor]) -> Tensor:
        """Takes its parameters' whole values from ``whole``."""
        if self.weight is None:
            assert self.buffer is not None
            return self.buffer
        return self.weight.value([next(whole) for _ in self.weight.parameters])


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWeights:
    """The policy's weights in host memory: all of them with adapters merged, or the adapters alone."""

    model: PreTrainedModel
    """Model that the weights belong to; only its config is used."""
    state: dict[str, Tensor]
    adapter_of: str = ""
    """Name of the adapted model if ``state`` holds the adapters alone; else empty."""

    def save(self, directory: Path) -> None:
        """Writes a plain HF folder, or adapters in peft's format.

        Tied embeddings are written once, as HF and vLLM expect.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if self.adapter_of:
            adapter_config(self.model, self.adapter_of).save_pretrained(str(directory))
            save_file(self.state, directory / "adapter_model.safetensors")
            return
        self.model.save_pretrained(directory, state_dict=self.state)


class PolicyWeights:
    """A ``rollout.weights.buckets.WeightSource``: weights with LoRA adapters merged, or the adapters alone.

    Reading is a collective under ZeRO-3: every rank makes one, and every rank reads it or calls ``finish``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sharding: Sharding,
        bucket_bytes: int = HOST_BUCKET_BYTES,
        *,
        adapter_of: str = "",
        borrow: Callable[[int], list[Tensor]] | None = None,
    ) -> None:
        """Lists the weights; gathers nothing yet.

        Args:
            model: The policy.
            sharding: Sharding of its run.
            bucket_bytes: Bytes gathered at once; the same on every rank.
            adapter_of: Name of the adapted model, if only its adapters are wanted.
            borrow: Returns the whole parameters of one of ``parameters``, if the ranks share them.
        """
        self._adapter_of = adapter_of
        self._borrow = borrow
        self.bucket_bytes = bucket_bytes
        self._model = model
        self._sharding = sharding
        weights = _adapter_factors(model) if adapter_of else merged_weights(model)
        found = [_Item(_entry(weight, sharding), weight) for weight in weights]
        if not adapter_of:
            # ``named_buffers`` also lists buffers that a saved model does not contain.
            persistent = model.state_dict().keys()
            found += [
                _Item(entry_of(name, buffer.dtype, buffer.shape), None, buffer.detach())
                for name, buffer in model.named_buffers()
                if name in persistent
            ]
        items = {item.entry.name: item for item in found}
        self.entries: Sequence[WeightEntry] = by_dtype(item.entry for item in found)
        self._items = [items[entry.name] for entry in self.entries]
        self._reading: Iterator[list[Tensor]] | None = None

    def parts(self) -> Iterator[list[Tensor]]:
        """See ``WeightSource``; the weights are detached, on the rank's device. Readable once."""
        assert self._reading is None, "weights are read once"
        self._reading = self._read()
        return self._reading

    @property
    def parameters(self) -> list[list[nn.Parameter]]:
        """Parameters that each bucket is made from; none for a bucket of buffers alone."""
        return [_parameters(parcel) for parcel in self._parcels()]

    @torch.no_grad()
    def again(self, index: int) -> list[Tensor]:
        """See ``WeightSource``; if the ranks share the weights, on rank 0 alone and by ``borrow``."""
        parcel = self._parcels()[index]
        parameters = _parameters(parcel)
        if self._sharding.stage < 3 or not parameters:
            (whole,) = self._sharding.whole([parameters])
        else:
            assert self._borrow is not None, "weights that ranks share are read again by borrowing"
            whole = self._borrow(index)
        values = iter(whole)
        return [item.value(values) for item in parcel]

    def finish(self) -> None:
        """Takes part in what the other ranks still gather; no-op after a complete read."""
        for _ in self._reading or self.parts():
            pass

    def to_host(self) -> "HostWeights":
        """Reads all weights into host memory."""
        state: dict[str, Tensor] = {}
        names = iter([entry.name for entry in self.entries])
        for part in self.parts():
            state |= {next(names): value.to("cpu", copy=True) for value in part}
        return HostWeights(model=self._model, state=state, adapter_of=self._adapter_of)

    @torch.no_grad()
    def _read(self) -> Iterator[list[Tensor]]:
        parcels = self._parcels()
        gathered = self._sharding.whole([_parameters(parcel) for parcel in parcels])
        for parcel in parcels:
            whole = iter(next(gathered))
            yield [item.value(whole) for item in parcel]

    def _parcels(self) -> list[list[_Item]]:
        items = iter(self._items)
        return [[next(items) for _ in bucket] for bucket in buckets(self.entries, self.bucket_bytes)]


def _parameters(parcel: Sequence[_Item]) -> list[nn.Parameter]:
    return [parameter for item in parcel if item.weight for parameter in item.weight.parameters]


def _adapter_factors(model: PreTrainedModel) -> Iterator[Weight]:
    for name, parameter in adapter_parameters(model).items():
        yield Weight(name=name, parameters=(parameter,), layer=None)


def _entry(weight: Weight, sharding: Sharding) -> WeightEntry:
    return entry_of(weight.name, weight.parameters[0].dtype, sharding.shape(weight.parameters[0]))
