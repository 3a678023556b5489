"""Extension of vLLM's worker that receives published weights; added by ``--worker-extension-cls``.

The only module that imports vLLM, and only inside vLLM's own processes.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from rollout.weights.buckets import WeightEntry
from rollout.weights.meeting import Meeting
from rollout.weights.transfer import Receiver


class PublishExtension:
    """Methods that publishing needs of vLLM's worker, for ``/collective_rpc``.

    vLLM calls each in every process of the worker, of which there are several with tensor parallelism.
    """

    def publishing_place(self) -> dict[str, Any]:
        """Returns the number of this process among those of its worker, and its kept group's name."""
        parallel = self.parallel_config  # type: ignore[attr-defined]
        place = parallel.data_parallel_index * parallel.world_size + self.rank  # type: ignore[attr-defined]
        return {"place": place, "group": self._publishing_receiver().group}

    def load_published(self, weights_path: str) -> None:
        """Loads the safetensors in ``weights_path`` into the running model."""
        self._reload(weights_path=weights_path)

    def receive_published(self, meeting: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        """Loads the weights sent by ``rollout.weights.transfer.send`` into the running model.

        With tensor parallelism every process receives whole weights and keeps its part of each.
        """
        weights = [WeightEntry(**entry) for entry in entries]
        device = self.device  # type: ignore[attr-defined]
        place, receiver = self.publishing_place()["place"], self._publishing_receiver()
        broken: list[Exception] = []

        def coming() -> Iterator[tuple[str, Tensor]]:
            # vLLM cannot load again after a load that raised, but after one that ended early it can.
            try:
                yield from receiver.receive(weights, Meeting(**meeting), device, place)
            except Exception as error:
                broken.append(error)

        self._reload(weights_iterator=coming())
        if broken:
            raise broken[0]

    def _publishing_receiver(self) -> Receiver:
        # vLLM mixes this class in and calls no constructor of it.
        if not hasattr(self, "_kept_receiver"):
            self._kept_receiver = Receiver()
        return self._kept_receiver

    def _reload(self, **source: Any) -> None:
        self.reload_weights(**source)  # type: ignore[attr-defined]
        layers = list(self.model_runner.get_model().modules())  # type: ignore[attr-defined]
        embeddings = [layer for layer in layers if type(layer) is VocabParallelEmbedding]
        for head in layers:
            if not isinstance(head, ParallelLMHead):
                continue
            for embedding in embeddings:
                # vLLM's CPU build multiplies with packed copies. ``reload_weights`` packs what it loads, but
                # a tied head is not loaded: without this line it would keep the copy of the old weights.
                if head.weight is embedding.weight and hasattr(embedding, "cpu_linear"):
                    head.cpu_linear = embedding.cpu_linear
