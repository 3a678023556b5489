"""The LM head by itself: against plain products, and against TRL's fused head."""

import argparse
import time
from collections.abc import Callable
from typing import Any

from gpu_script import Tell

HEADS = {
    "full": {"8b": (15_000, 4096, 151_936), "0.6b": (15_000, 1024, 151_936)},
    "tiny": {"tiny": (64, 32, 400)},
}
"""Trained tokens, width, vocabulary."""
REPEAT = 3
TEMPERATURE = 0.7
VOCABULARY_TILE = 32_768
"""TRL's default for its head."""


def head_agrees(options: argparse.Namespace, tell: Tell) -> bool:
    """Compares the LM head with plain fp32 products of the same low-precision weights, in several chunks."""
    import torch

    import train.model.logprobs as logprobs

    device, dtype = torch.device(options.device), torch.bfloat16
    tokens, width, vocabulary = (4096, 1024, 151_936) if options.size == "full" else (64, 32, 400)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype)
    weight.requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    logprobs.HEAD_CHUNK_BYTES = 4 * vocabulary * tokens // 5
    head = logprobs.HeadWeights(weight=weight)
    ours, _ = logprobs.head_logprobs(hidden, head, targets, logprobs.HeadOptions(in_fp32=True))
    of_ours = torch.autograd.grad(ours.mean(), (hidden, weight))
    plain = (hidden.float() @ weight.float().t()).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    of_plain = torch.autograd.grad(plain.mean(), (hidden, weight))
    value = float((ours - plain).detach().abs().max())
    gradient = max(
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(of_ours, of_plain, strict=True)
    )
    tell("LM head in fp32: largest difference of a log-prob", value)
    tell("LM head in fp32: difference of the gradients", gradient)
    agrees = value < 1e-3 and gradient < 0.01
    tell("LM head in fp32 equals plain products", agrees)
    return agrees


def compare_heads(options: argparse.Namespace, tell: Tell) -> None:
    """Prints seconds of a forward and backward pass of our head and of TRL's, log-probs and entropies."""
    import torch

    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    for shape, (tokens, width, vocabulary) in HEADS[options.size].items():
        hidden = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
        weight = (torch.randn(vocabulary, width, device=device, dtype=dtype) / width**0.5).requires_grad_()
        targets = torch.randint(vocabulary, (tokens,), device=device)
        name = f"{shape}, LM head alone"
        mine, their = (_seconds(head, (hidden, weight, targets), options) for head in (ours, trl))
        tell(f"{name}: forward and backward", 1e3 * mine, "ms")
        tell(f"{name}, TRL's: forward and backward", 1e3 * their, "ms")
        tell(f"{name}: times as fast as TRL's", their / mine)
        with torch.no_grad():
            apart = (ours(hidden, weight, targets) - trl(hidden, weight, targets)).abs().max()
        tell(f"{name}: largest difference of a log-prob from TRL's", float(apart))


def ours(hidden: Any, weight: Any, targets: Any) -> Any:
    """Our log-probs."""
    from train.model.logprobs import HeadOptions, HeadWeights, head_logprobs

    options = HeadOptions(temperature=TEMPERATURE)
    return head_logprobs(hidden, HeadWeights(weight=weight), targets, options)[0]


def trl(hidden: Any, weight: Any, targets: Any) -> Any:
    """TRL's log-probs."""
    from trl.kernels import ChunkedLogProbFunction

    more = (TEMPERATURE, VOCABULARY_TILE, None, 1.0, ("log_probs", "entropy"))
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, *more)[0]


def _seconds(head: Callable[..., Any], inputs: tuple[Any, ...], options: argparse.Namespace) -> float:
    """Returns the seconds of the fastest pass after one that warms up."""
    import torch

    best = float("inf")
    for number in range(REPEAT + 1):
        began = time.perf_counter()
        torch.autograd.grad(head(*inputs).mean(), inputs[:2])
        if options.device == "cuda":
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - began)
    return best
