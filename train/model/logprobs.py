"""Log-probs of given tokens and entropies from hidden states: the LM head in chunks, in bounded memory."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from configs.schema import HEAD_CHUNK_BYTES

BLOCK_BYTES = 4 * 2**20
"""Bytes of logits that a CPU processes at once: they stay in its cache from one operation to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """How an LM head computes log-probs."""

    temperature: float = 1.0
    """Logits are divided by it."""
    in_fp32: bool = False
    """Keep the products of low-precision weights in fp32 instead of rounding the logits to their dtype."""
    entropy_has_gradient: bool = False
    """Make the entropies differentiable, for an entropy bonus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWeights:
    """Weights of an LM head: ``logits = hidden @ weight.T + bias + low @ up.T``."""

    weight: Tensor
    """Shape ``(vocabulary, hidden_size)``."""
    bias: Tensor | None = None
    """Shape ``(vocabulary,)``, or None."""
    low: Tensor | None = None
    """Output of an adapter's first factor, scaled, shape ``(N, rank)``; None without an adapter."""
    up: Tensor | None = None
    """Second factor of the adapter, shape ``(vocabulary, rank)``; None without an adapter."""


def head_logprobs(
    hidden: Tensor,
    head: HeadWeights,
    targets: Tensor,
    options: HeadOptions,
    temperatures: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns ``log softmax(logits / temperature)[targets]`` and the entropies, both fp32, shape ``(N,)``.

    Logits exist for one chunk of tokens at a time. Without gradient none is kept; otherwise only the last
    chunk, with which the backward pass begins, and the backward pass recomputes the others. Gradients of the
    weights are summed over chunks in fp32.

    Args:
        hidden: Hidden states that predict the targets, shape ``(N, hidden_size)``.
        head: Weights of the head.
        targets: Token ids, shape ``(N,)``.
        options: Temperature and precision.
        temperatures: Temperature of each token in place of the one of ``options``, shape ``(N,)``.
    """
    weights = (head.weight, head.bias, head.low, head.up)
    results = _HeadLogprobs.apply(hidden, *weights, targets, temperatures, options, torch.is_grad_enabled())
    return cast("tuple[Tensor, Tensor]", results)


class _HeadLogprobs(torch.autograd.Function):
    """See ``head_logprobs``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low: Tensor | None,
        up: Tensor | None,
        targets: Tensor,
        temperatures: Tensor | None,
        options: HeadOptions,
        has_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        head = HeadWeights(weight=weight, bias=bias, low=low, up=up)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropies = torch.empty(2, len(targets), dtype=wide, device=hidden.device)
        *before, final = _chunks(len(targets), len(weight))
        for chunk in before:
            logits = _logits(hidden, head, chunk, temperatures, options)
            _softmax(logits, targets[chunk], logprobs[chunk], entropies[chunk])
        last = _logits(hidden, head, final, temperatures, options)
        _softmax(last, targets[final], logprobs[final], entropies[final], keeps_probs=has_gradient)
        ctx.save_for_backward(hidden, weight, bias, low, up, targets, temperatures, entropies, last)
        ctx.options = options
        if not options.entropy_has_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, low, up, targets, temperatures, entropies, probs = ctx.saved_tensors
        options: HeadOptions = ctx.options
        needs_hidden, needs_weight, needs_bias, needs_low, needs_up, *_ = ctx.needs_input_grad
        head = HeadWeights(weight=weight, bias=bias, low=low, up=up)
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_low = torch.empty_like(low) if needs_low else None
        of_weight = of_bias = of_up = None
        unused = torch.empty_like(entropies)
        for chunk in reversed(_chunks(len(targets), len(weight))):
            if probs is None:
                probs = _logits(hidden, head, chunk, temperatures, options)
                _softmax(probs, targets[chunk], unused[chunk], unused[chunk], keeps_probs=True)
            # d logits / d products = 1 / temperature
            temperature = options.temperature if temperatures is None else temperatures[chunk]
            upstream = grad_logprobs[chunk] / temperature
            bonus = grad_entropies[chunk] / temperature if options.entropy_has_gradient else None
            gradient = _gradient(probs, targets[chunk], entropies[chunk], upstream, bonus)
            probs = None
            if needs_bias:
                of_bias = gradient.sum(0) + (0 if of_bias is None else of_bias)
            if gradient.is_cuda:
                gradient = gradient.to(weight.dtype)  # once, for all products
            if of_hidden is not None:
                of_hidden[chunk] = _wide_product(gradient, weight)
            if of_low is not None:
                of_low[chunk] = _wide_product(gradient, up)
            if needs_weight:
                of_weight = _add_product(of_weight, gradient.t(), hidden[chunk])
            if needs_up:
                of_up = _add_product(of_up, gradient.t(), low[chunk])
        of_weight, of_bias, of_up = (
            None if sum_ is None else sum_.to(parameter.dtype)
            for sum_, parameter in ((of_weight, weight), (of_bias, bias), (of_up, up))
        )
        return of_hidden, of_weight, of_bias, of_low, of_up, None, None, None, None


def _chunks(num_tokens: int, vocabulary: int) -> list[slice]:
    """Splits the tokens into the fewest chunks of about equal size within ``HEAD_CHUNK_BYTES`` of logits."""
    number = max(1, math.ceil(4 * num_tokens * vocabulary / HEAD_CHUNK_BYTES))
    bounds = [num_tokens * i // number for i in range(number + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]


def _logits(
    hidden: Tensor, head: HeadWeights, chunk: slice, temperatures: Tensor | None, options: HeadOptions
) -> Tensor:
    """Returns the logits of a chunk divided by the temperature, in fp32 at least."""
    product = _wide_product if options.in_fp32 else torch.mm
    logits = product(hidden[chunk], head.weight.t())
    if head.bias is not None:
        logits += head.bias
    if head.low is not None and head.up is not None:
        logits += product(head.low[chunk], head.up.t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperatures is not None:
        return logits.div_(temperatures[chunk, None])
    return logits if options.temperature == 1 else logits.div_(options.temperature)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``left @ right`` in fp32 (or fp64), from inputs that are rounded to the dtype of ``right``.

    On a GPU the tensor cores take low-precision inputs and return fp32, so nothing is copied to fp32; on a
    CPU, which has no such product, the inputs are copied.
    """
    wide = torch.promote_types(right.dtype, torch.float32)
    if right.is_cuda and right.dtype != wide:
        return torch.mm(left.to(right.dtype), right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Adds ``left @ right`` to ``total`` in place, in fp32 as ``_wide_product``; None counts as 0."""
    if total is None:
        return _wide_product(left, right)
    if right.is_cuda and right.dtype != total.dtype:
        return torch.addmm(total, left.to(right.dtype), right, out_dtype=total.dtype, out=total)
    return total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _softmax(
    logits: Tensor, targets: Tensor, logprobs: Tensor, entropies: Tensor, *, keeps_probs: bool = False
) -> None:
    """Writes the log-probs of the targets and the entropies; with ``keeps_probs``, also probs over logits."""
    rows = max(1, len(targets))
    if logits.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // (logits.element_size() * logits.shape[-1]))
    blocks = zip(*(x.split(rows) for x in (logits, targets, logprobs, entropies)), strict=True)
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
        if keeps_probs:
            block.copy_(exponentials)


def _gradient(
    probs: Tensor, targets: Tensor, entropies: Tensor, grad_logprobs: Tensor, grad_entropies: Tensor | None
) -> Tensor:
    """Returns the gradient of the logits, written over ``probs``."""
    of_entropies = None
    if grad_entropies is not None:
        # dH/dz = -p (log p + H)
        of_entropies = -(torch.special.xlogy(probs, probs) + probs * entropies[:, None])
    # d log p_t / dz = 1[t] - p
    gradient = probs.mul_(-grad_logprobs[:, None])
    gradient.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])
    if of_entropies is not None and grad_entropies is not None:
        gradient.addcmul_(of_entropies, grad_entropies[:, None])
    return gradient
