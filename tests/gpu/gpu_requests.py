"""The requests of the sampling bench, and what a worker reads from memory to answer them."""

import random
from dataclasses import dataclass
from pathlib import Path

from launch.plan.architecture import architecture_of

SCHEDULE = (8, 4, 1)
Samples = list[list[list[int]]]
"""Ids of each sample of each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``n`` samples of one prompt."""

    ids: list[int]
    n: int
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The requests and the random policy that they are made to, if no model is given."""

    traces: int
    problems: int
    question: int
    """Tokens of a prompt without drafts."""
    median: int
    """Median tokens of a completion; log-normal with sigma 0.6, up to four times the median."""
    max_num_seqs: int
    model: dict[str, int]


SIZES = {
    "tiny": Size(traces=4, problems=2, question=24, median=16, max_num_seqs=32, model={}),
    "full": Size(
        traces=64,
        problems=32,
        question=200,
        median=300,
        max_num_seqs=512,
        model={
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
    ),
}
"""``full`` has the sizes of Qwen2.5-0.5B."""


def traces(size: Size) -> list[list[list[Request]]]:
    """Returns problems of one stage of one group."""
    rng = random.Random(0)
    return [[[_request(rng, size, size.question, 8)]] for _ in range(size.traces)]


def pdr(size: Size) -> list[list[list[Request]]]:
    """Returns problems of three stages; a refinement reads four drafts of the median length."""
    rng = random.Random(1)
    longer = size.question + 4 * size.median
    return [
        [
            [_request(rng, size, size.question if i == 0 else longer, width)]
            for i, width in enumerate(SCHEDULE)
        ]
        for _ in range(size.problems)
    ]


def _request(rng: random.Random, size: Size, prompt: int, n: int) -> Request:
    length = min(round(size.median * rng.lognormvariate(0, 0.6)), 4 * size.median)
    ids = [rng.randrange(5, 260) for _ in range(prompt)]  # bytes, in any vocabulary
    return Request(ids=ids, n=n, seed=rng.randrange(2**30), max_tokens=max(length, 4))


CASES = {"traces": traces, "pdr": pdr}


def bytes_read(problems: list[list[list[Request]]], samples: Samples, folder: Path) -> float:
    """Returns the least bytes that decoding reads from memory if all requests are decoded at once.

    Each step reads the weights once, and each token the keys and values before it.

    Args:
        problems: Problems of one stage each.
        samples: Ids of each sample of each request.
        folder: The policy, whose weights and cache have 2 bytes a value.
    """
    model = architecture_of(str(folder))
    requests = [request for (stage,) in problems for request in stage]
    pairs = [(len(r.ids), len(ids)) for r, group in zip(requests, samples, strict=True) for ids in group]
    steps = max(length for _, length in pairs)
    contexts = sum(length * (prompt + length / 2) for prompt, length in pairs)
    return steps * 2 * model.parameters + contexts * model.kv_bytes(2)
