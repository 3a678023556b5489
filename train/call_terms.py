"""What an update makes of each call: its weights, its log-prob by the trainer, its part of the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.batch.collate import MicroBatch
from train.loss.objective import TokenTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """What an update made of one call, in the first pass over its batch.

    Numbers that were not finite, as in a refused step, are read back as None: JSON has none of them.
    """

    trained_tokens: int
    advantage: float | None
    """Mean over trained tokens: the group's, or the critic's in its place."""
    policy_weight: float
    """Weight of each trained token in the policy loss."""
    imitation_weight: float
    """Weight of each trained token in the imitation loss."""
    trainer_logprob: float | None
    """Sum over trained tokens, by the trainer before or in this update."""
    loss: float | None
    """The part of the update's loss that this call contributed: policy, KL, imitation and entropy terms."""


class CallTerms:
    """Adds up what the trainer computes for each call, over the micro-batches of one rank."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, ...]] = []
        self._sums: list[Tensor] = []

    def add(self, batch: MicroBatch, logprobs: Tensor, entropies: Tensor, terms: TokenTerms) -> None:
        """Adds one micro-batch.

        Args:
            batch: With N trained tokens.
            logprobs: Shape ``(N,)``.
            entropies: Shape ``(N,)``.
            terms: Of the policy's objective.
        """
        logprobs, entropies = logprobs.detach(), entropies.detach()
        loss = (
            batch.policy_weights * terms.losses["loss"]
            - batch.imitation_weights * logprobs
            - batch.entropy_weights * entropies
        )
        ones = torch.ones_like(logprobs)
        columns = (ones, batch.advantages, batch.policy_weights, batch.imitation_weights, logprobs, loss)
        values = torch.stack(columns, dim=1).double()
        sums = torch.zeros(batch.num_sequences, len(columns), dtype=values.dtype, device=values.device)
        # Left on the device: reading it now would wait for the whole forward pass.
        self._sums.append(sums.index_add_(0, batch.sequences, values))
        self._calls.append(batch.call_ids)

    def result(self) -> dict[str, UpdateRecord]:
        """By call id. The filler rows of a rank without work have no weight and are left out."""
        found = {}
        for calls, sums in zip(self._calls, self._sums, strict=True):
            for call, (tokens, advantage, policy, imitation, logprob, loss) in zip(
                calls, sums.tolist(), strict=True
            ):
                if tokens and (policy or imitation):
                    found[call] = UpdateRecord(
                        trained_tokens=int(tokens),
                        advantage=advantage / tokens,
                        policy_weight=policy / tokens,
                        imitation_weight=imitation / tokens,
                        trainer_logprob=logprob,
                        loss=loss,
                    )
        return found
