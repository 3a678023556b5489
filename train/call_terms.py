"""Records of each call in an update: its weights, the trainer's log-prob and its part of the loss."""

import torch
from torch import Tensor

from train.batch.collate import MicroBatch
from train.loss.objective import TokenTerms
from train.trace import UpdateRecord


class CallTerms:
    """Sums the trainer's results for each call, over the micro-batches of one rank."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, ...]] = []
        self._sums: list[Tensor] = []

    def add(self, batch: MicroBatch, logprobs: Tensor, entropies: Tensor, terms: TokenTerms) -> None:
        """Adds one micro-batch.

        Args:
            batch: The micro-batch, with N trained tokens.
            logprobs: Log-probs of the policy, shape ``(N,)``.
            entropies: Entropies of the policy, shape ``(N,)``.
            terms: Terms of the policy's objective.
        """
        logprobs, entropies = logprobs.detach(), entropies.detach()
        loss = (
            batch.policy_weights * terms.losses["loss"]
            - batch.imitation_weights * logprobs
            - batch.entropy_weights * entropies
        )
        ones = torch.ones_like(logprobs)
        zeros = torch.zeros_like(logprobs)
        taught = zeros if batch.has_teacher is None else batch.has_teacher.to(logprobs.dtype)
        columns = (
            ones,
            batch.advantages,
            batch.policy_weights,
            batch.imitation_weights,
            logprobs,
            loss,
            taught,
            terms.means.get("opd_kl", zeros),
        )
        # (N, columns), summed over the tokens of each completion to (num_sequences, columns).
        values = torch.stack(columns, dim=1).double()
        sums = torch.zeros(batch.num_sequences, len(columns), dtype=values.dtype, device=values.device)
        # Kept on the device: reading it now would wait for the whole forward pass.
        self._sums.append(sums.index_add_(0, batch.sequences, values))
        self._calls.append(batch.call_ids)

    def result(self) -> dict[str, UpdateRecord]:
        """Returns the records by call id. Filler rows, which have no weight, are omitted."""
        found = {}
        for calls, sums in zip(self._calls, self._sums, strict=True):
            for call, of_call in zip(calls, sums.tolist(), strict=True):
                tokens, advantage, policy, imitation, logprob, loss, taught, teacher_kl = of_call
                if tokens and (policy or imitation):
                    found[call] = UpdateRecord(
                        trained_tokens=int(tokens),
                        advantage=advantage / tokens,
                        policy_weight=policy / tokens,
                        imitation_weight=imitation / tokens,
                        trainer_logprob=logprob,
                        loss=loss,
                        teacher_kl=teacher_kl / taught if taught else None,
                    )
        return found
