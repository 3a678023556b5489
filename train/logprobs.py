"""Log-probs of chosen tokens and entropies from logits, with one array of their size kept and few passes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class _TokenLogprobs(torch.autograd.Function):
    """See ``token_logprobs``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, targets: Tensor, entropy_has_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        normaliser = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
        probs = (logits - normaliser[:, None]).exp_()
        # H = -sum p log p = log Z - sum p z
        entropies = normaliser - torch.linalg.vecdot(probs, logits)
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
        # d log p_t / dz = 1[t] - p; nobody else needs probs, so they become the gradient.
        gradient = probs.mul_(-grad_logprobs[:, None])
        gradient.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])
        if of_entropies is not None:
            gradient.addcmul_(of_entropies, grad_entropies[:, None])
        return gradient, None, None


def token_logprobs(
    logits: Tensor, targets: Tensor, *, entropy_has_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """``log softmax(logits)[targets]`` and the entropies of the distributions, both shape ``(N,)``.

    Args:
        logits: fp32, shape ``(N, vocabulary)``.
        targets: Shape ``(N,)``.
        entropy_has_gradient: For an entropy bonus.
    """
    return cast("tuple[Tensor, Tensor]", _TokenLogprobs.apply(logits, targets, entropy_has_gradient))
