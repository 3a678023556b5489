"""Log-probs of given tokens and entropies from logits, with few passes and one stored array of their size."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

BLOCK_BYTES = 4 * 2**20
"""Bytes of logits that a CPU processes at once: they stay in its cache from one operation to the next."""


class _TokenLogprobs(torch.autograd.Function):
    """See ``token_logprobs``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, targets: Tensor, entropy_has_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = logits.new_empty(2, len(targets))
        # The caller no longer needs the logits: probabilities overwrite them, block by block.
        probs = logits.detach()
        rows = len(targets)
        if logits.device.type == "cpu":
            rows = max(1, BLOCK_BYTES // (logits.element_size() * logits.shape[-1]))
        blocks = zip(*(x.split(rows) for x in (probs, targets, logprobs, entropies)), strict=True)
        for block, target, logprob, entropy in blocks:
            # log Z = max z + log sum exp(z - max z), which cannot overflow.
            top = block.amax(-1, keepdim=True)
            exponentials = (block - top).exp_()
            total = exponentials.sum(-1, keepdim=True)
            normaliser = (top + total.log()).squeeze(-1)
            exponentials /= total
            torch.sub(block.gather(-1, target[:, None]).squeeze(-1), normaliser, out=logprob)
            # H = -sum p log p = log Z - sum p z
            torch.sub(normaliser, torch.linalg.vecdot(exponentials, block), out=entropy)
            block.copy_(exponentials)
        ctx.save_for_backward(probs, targets, entropies)
        cast(Any, ctx).entropy_has_gradient = entropy_has_gradient
        if not entropy_has_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor, None, None]:
        probs, targets, entropies = ctx.saved_tensors
        of_entropies = None
        if ctx.entropy_has_gradient:
            # dH/dz = -p (log p + H)
            of_entropies = -(torch.special.xlogy(probs, probs) + probs * entropies[:, None])
        # d log p_t / dz = 1[t] - p; probs are not needed again, so the gradient overwrites them.
        gradient = probs.mul_(-grad_logprobs[:, None])
        gradient.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])
        if of_entropies is not None:
            gradient.addcmul_(of_entropies, grad_entropies[:, None])
        return gradient, None, None


def token_logprobs(
    logits: Tensor, targets: Tensor, *, entropy_has_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns ``log softmax(logits)[targets]`` and the entropies of the distributions, both shape ``(N,)``.

    Args:
        logits: fp32, shape ``(N, vocabulary)``. Overwritten in place; do not pass a tensor that is needed
            again.
        targets: Token ids, shape ``(N,)``.
        entropy_has_gradient: True makes the entropies differentiable, for an entropy bonus.
    """
    return cast("tuple[Tensor, Tensor]", _TokenLogprobs.apply(logits, targets, entropy_has_gradient))
