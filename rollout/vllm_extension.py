"""What a vLLM worker needs to be published to; mixed into it by ``--worker-extension-cls``.

The only module that imports vLLM, and only inside vLLM's own processes.
"""

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead


class PublishExtension:
    """Adds ``load_published`` to vLLM's worker, for ``/collective_rpc``."""

    def load_published(self, weights_path: str) -> None:
        """Loads the safetensors in ``weights_path`` into the running model."""
        self.reload_weights(weights_path=weights_path)  # type: ignore[attr-defined]
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        for layer in model.modules():
            # vLLM's CPU build multiplies with a packed copy of the head's weight. reload_weights packs
            # what it loads, but a tied head is not loaded: without this it would keep the old copy.
            if isinstance(layer, ParallelLMHead) and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)
