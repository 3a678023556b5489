"""Extension of vLLM's worker that receives published weights; added by ``--worker-extension-cls``.

The only module that imports vLLM, and only inside vLLM's own processes.
"""

from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from rollout.weights.transfer import Meeting, WeightEntry, receive


class PublishExtension:
    """Adds ``load_published`` and ``receive_published`` to vLLM's worker, for ``/collective_rpc``."""

    def load_published(self, weights_path: str) -> None:
        """Loads the safetensors in ``weights_path`` into the running model."""
        self._reload(weights_path=weights_path)

    def receive_published(self, meeting: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        """Loads the weights sent by ``rollout.weights.transfer.send`` into the running model.

        Raises:
            ValueError: If the worker is spread over several devices, each of which would need its own shard.
        """
        if (parts := self.parallel_config.world_size) > 1:  # type: ignore[attr-defined]
            raise ValueError(
                f"This worker is spread over {parts} devices; publish to it with "
                "rollout.weight_transfer=directory."
            )
        weights = [WeightEntry(**entry) for entry in entries]
        device = self.device  # type: ignore[attr-defined]
        self._reload(weights_iterator=receive(weights, Meeting(**meeting), device))

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
