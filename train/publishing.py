"""Publishes the policy of all ranks to the workers."""

from accelerate import Accelerator
from transformers import PreTrainedModel

from configs.schema import TrainingConfig
from rollout.weights.buckets import BUCKET_BYTES
from train.collaborators import Publisher
from train.distributed import give_back_cached_memory
from train.model.weights import HOST_BUCKET_BYTES, PolicyWeights
from train.sharding import Sharding
from train.zero3_loans import Zero3Loans


class PolicyPublishing:
    """One rank's part in publishing; every rank makes the same calls."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: PreTrainedModel,
        sharding: Sharding,
        publisher: Publisher | None,
    ) -> None:
        """Prepares the part; a collective.

        Args:
            config: The run's config.
            accelerator: This rank's.
            model: The policy, wrapped as ``sharding`` shards it.
            sharding: How ranks share the weights.
            publisher: Rank 0's; None on the other ranks, which gather with it.
        """
        self._config = config.rollout
        self._adapter_of = config.model.path if config.rollout.max_lora_rank else ""
        self._accelerator = accelerator
        self._model = model
        self._sharding = sharding
        self._publisher = publisher
        # A folder is read by restarted workers themselves.
        needs_loans = sharding.stage == 3 and config.rollout.weight_transfer != "directory"
        limit = config.train.collective_timeout_seconds
        self._loans = Zero3Loans(accelerator, limit) if needs_loans else None

    def publish(self, version: int) -> None:
        """Makes the workers serve the policy as ``version``."""
        if self._config.enable_sleep_mode:
            give_back_cached_memory(self._accelerator)
        size = BUCKET_BYTES.get(self._config.weight_transfer, HOST_BUCKET_BYTES)
        borrow = self._loans.borrow if self._loans else None
        weights = PolicyWeights(self._model, self._sharding, size, adapter_of=self._adapter_of, borrow=borrow)
        if self._loans:
            self._loans.lend(weights.parameters)
        try:
            if self._publisher:
                self._publisher.publish(weights, version)
        finally:
            weights.finish()  # ranks gather together, also if the publish failed in between

    def weights_will_change(self) -> None:
        """Returns once no restarted worker reads the published weights any more."""
        if self._publisher:
            self._publisher.weights_will_change()
        self.end()

    def end(self) -> None:
        """Lends the published weights no longer."""
        if self._loans:
            self._loans.end()
