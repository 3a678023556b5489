"""Token weights and sub-batch shares, which turn the losses of tokens into the loss of a batch. Pure.

The weights include every normalisation (tokens, sequences, roles, the whole batch of one update), so that a
batch may be split into rows, micro-batches and ranks in any way without changing its gradient.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rollout.records import TRACE

TokenWeights = Callable[[Sequence[int], int], list[float]]
"""``(lengths, max_completion_length) -> weights``.

``lengths`` are the trained tokens of each sequence of a sub-batch, ``max_completion_length`` is the longest
completion that may be sampled; the result is, per sequence, the weight of each of its tokens.
"""


def mean_over_tokens(lengths: Sequence[int], max_completion_length: int = 0) -> list[float]:
    """Weighs every trained token equally: ``1 / sum(lengths)`` (DAPO)."""
    del max_completion_length
    return [1.0 / max(sum(lengths), 1)] * len(lengths)


def mean_over_sequences(lengths: Sequence[int], max_completion_length: int = 0) -> list[float]:
    """Weighs every sequence equally: ``1 / (len(lengths) * length)`` (GRPO)."""
    del max_completion_length
    return [1.0 / (len(lengths) * max(length, 1)) for length in lengths]


def mean_over_longest(lengths: Sequence[int], max_completion_length: int) -> list[float]:
    """Divides by the longest possible length: ``1 / (len(lengths) * max_completion_length)`` (Dr. GRPO).

    This is a constant, so the weight of a token does not depend on the length of its sequence.
    """
    return [1.0 / (len(lengths) * max_completion_length)] * len(lengths)


def role_weights(
    roles: Iterable[str], *, operator_fraction: float, coefs: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Returns each role's share of the loss (Eq. 11 of the paper with ``operator_fraction`` 1/2).

    ``trace`` has the share ``1 - operator_fraction``. The operator's roles divide ``operator_fraction`` in
    proportion to their ``coefs``, which default to 1. The shares of the roles present are normalised, so
    they always sum to 1.

    Raises:
        ValueError: If only roles of weight zero are present.
    """
    present = sorted(set(roles))
    shares = {role: (coefs or {}).get(role, 1.0) for role in present if role != TRACE}
    of_operator = sum(shares.values()) or 1.0
    raw = {
        role: 1 - operator_fraction if role == TRACE else operator_fraction * shares[role] / of_operator
        for role in present
    }
    total = sum(raw.values())
    if present and total <= 0:
        raise ValueError(
            f"algo.operator_fraction is {operator_fraction}, but the batch holds only {', '.join(present)} "
            "groups, whose weight is then zero. Collect groups of the other kind "
            "or change algo.operator_fraction."
        )
    return {role: weight / total for role, weight in raw.items()}
