"""Turns verdicts into rewards: pure terms, weighted and logged separately.

Every term takes a group (the completions of one context) and returns one number per completion, so that
``length`` can compare the correct ones. All other terms use one completion at a time.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from configs.thinking import divide
from rewards.answers.extract import Rules, extract
from rewards.verdict import Verdict

DISTIL = "distil"
"""The role of calls that write a workspace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardInput:
    """One completion with the facts that the terms use."""

    verdict: Verdict
    completion: str
    """Whole text, thinking included."""
    num_tokens: int
    """Length of the completion."""
    max_tokens: int
    """Limit of the completion."""
    drafts: tuple[str, ...] = ()
    """Texts of the drafts in its prompt, as a workspace or to distil."""
    draft_statuses: tuple[str, ...] = ()
    """Statuses of the drafts' own verdicts, in the same order."""
    role: str = "trace"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapedReward:
    """A reward and its parts; ``total`` is the sum of the weighted ``parts``."""

    total: float
    parts: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapingOptions:
    """The constants of the terms."""

    wrong_reward: float = -1.0
    """Outcome of an answer that is not correct: -1 or 0."""
    overlong_buffer: int = 4096
    """Tokens before ``max_tokens`` over which the overlong penalty grows from 0 to -1."""
    repetition_words: int = 20
    """Length, in words, of the sequences whose repetition is counted."""
    copy_words: int = 8
    """Length, in words, of the sequences that are compared with the drafts."""
    copy_share: float = 0.9
    """A completion is a copy if at least this share of its sequences occurs in one draft."""
    rules: Rules = field(default_factory=Rules)
    """Rules to find thinking and answers."""

    def __post_init__(self) -> None:
        for name in ("overlong_buffer", "repetition_words", "copy_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.copy_share <= 1:
            raise ValueError(f"`copy_share` must be in (0, 1], got {self.copy_share}.")
        if self.wrong_reward >= 1:
            raise ValueError(
                f"`wrong_reward` must be below 1, the reward of a correct answer; got {self.wrong_reward}."
            )


def outcome(verdict: Verdict, *, wrong_reward: float) -> float:
    """Returns 1 for a correct answer, else ``wrong_reward``; a custom reward's number unchanged."""
    if verdict.value is not None:
        return verdict.value
    return 1.0 if verdict.is_correct else wrong_reward


def outcomes(verdicts: Sequence[Verdict], *, wrong_reward: float) -> list[float]:
    """Returns the outcome of each completion of a group.

    An undecided one gets the mean of the others, so that it neither gains nor loses: nobody looked at it.
    """
    decided = [outcome(verdict, wrong_reward=wrong_reward) for verdict in verdicts if not verdict.undecided]
    neutral = fmean(decided) if decided else 0.0
    return [
        neutral if verdict.undecided else outcome(verdict, wrong_reward=wrong_reward) for verdict in verdicts
    ]


def overlong_penalty(num_tokens: int, *, max_tokens: int, buffer: int) -> float:
    """Returns DAPO's soft overlong punishment (Yu et al. 2025, equation 13), between -1 and 0.

    0 up to ``max_tokens - buffer``, then linear down to -1 at ``max_tokens``. A buffer larger than
    ``max_tokens`` is reduced to it.
    """
    buffer = min(buffer, max_tokens)
    over = num_tokens - (max_tokens - buffer)
    return -min(1.0, max(0.0, over / buffer))


def format_penalty(completion: str, verdict: Verdict, *, rules: Rules) -> float:
    """Returns 0 if thinking is closed and not repeated and the answer is in one box, else -1."""
    marks = rules.marks
    num_open = completion.count(marks.open) + marks.opened_by_prompt
    num_close = completion.count(marks.close)
    is_well_formed = num_open == num_close <= 1 and divide(completion, marks).solution is not None
    return 0.0 if is_well_formed and verdict.found_by == "box" else -1.0


def repetition_penalty(text: str, *, num_words: int) -> float:
    """Returns minus the share of ``num_words``-grams that occurred before; 0 for shorter texts."""
    words = text.split()
    total = len(words) - num_words + 1
    if total <= 0:
        return 0.0
    distinct = {tuple(words[start : start + num_words]) for start in range(total)}
    return len(distinct) / total - 1.0


def length_bonus(inputs: Sequence[RewardInput]) -> list[float]:
    """Returns 0.5 for the shortest correct completion of a group, -0.5 for the longest; 0 for wrong ones.

    Linear in between: 0.5 - (n - shortest) / (longest - shortest) for n tokens. This is the length reward of
    Kimi k1.5 (2025, section 2.3.3) without its part for wrong answers: a short wrong answer earns nothing.
    One correct completion, or several of equal length, get 0.
    """
    lengths = [item.num_tokens for item in inputs if item.verdict.is_correct]
    spread = max(lengths) - min(lengths) if lengths else 0
    if spread == 0:
        return [0.0] * len(inputs)
    shortest = min(lengths)
    return [
        0.5 - (item.num_tokens - shortest) / spread if item.verdict.is_correct else 0.0 for item in inputs
    ]


def _sequences(text: str, num_words: int) -> set[tuple[str, ...]]:
    """Returns the ``num_words``-grams of a text, in lower case; each sign counts as a word."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return {tuple(words[start : start + num_words]) for start in range(len(words) - num_words + 1)}


def copied_share(solution: str, drafts: Sequence[str], *, num_words: int) -> float:
    """Returns the largest share of the solution's n-grams found in one draft; 0 if the solution has none."""
    own = _sequences(solution, num_words)
    if not own:
        return 0.0
    return max((len(own & _sequences(draft, num_words)) / len(own) for draft in drafts), default=0.0)


def copy_penalty(item: RewardInput, *, options: ShapingOptions) -> float:
    """Returns -1 if the solution copies a draft of its workspace nearly word for word, else 0."""
    marks = options.rules.marks
    solution = divide(item.completion, marks).solution or ""
    drafts = [divide(draft, marks).solution or draft for draft in item.drafts]
    share = copied_share(solution, drafts, num_words=options.copy_words)
    return -1.0 if share >= options.copy_share else 0.0


def gain_bonus(item: RewardInput) -> float:
    """Returns by how much a refinement beats its drafts: 1 or 0, minus the share of right drafts.

    Between -1 (it lost what all drafts had) and 1 (none had it). 0 without drafts or if its check failed.
    """
    if not item.draft_statuses or item.verdict.is_failure:
        return 0.0
    right = sum(status == "correct" for status in item.draft_statuses)
    return float(item.verdict.is_correct) - right / len(item.draft_statuses)


_STATED = ("tag", "marker")


def leak_penalty(item: RewardInput, *, options: ShapingOptions) -> float:
    """Returns -1 if a workspace summary states a final answer, else 0.

    A summary that says ``the answer is 7`` makes the next stage copy it. Calls of other roles get 0.
    """
    if item.role != DISTIL:
        return 0.0
    rules = Rules(forms=_STATED, marks=options.rules.marks)
    return 0.0 if extract(item.completion, rules).answer is None else -1.0


GroupInputs = Sequence[RewardInput]
TERMS: dict[str, Callable[[GroupInputs, ShapingOptions], list[float]]] = {
    "outcome": lambda group, options: outcomes(
        [item.verdict for item in group], wrong_reward=options.wrong_reward
    ),
    "overlong": lambda group, options: [
        overlong_penalty(item.num_tokens, max_tokens=item.max_tokens, buffer=options.overlong_buffer)
        for item in group
    ],
    "format": lambda group, options: [
        format_penalty(item.completion, item.verdict, rules=options.rules) for item in group
    ],
    "repetition": lambda group, options: [
        repetition_penalty(item.completion, num_words=options.repetition_words) for item in group
    ],
    "length": lambda group, options: length_bonus(group),
    "copy": lambda group, options: [copy_penalty(item, options=options) for item in group],
    "gain": lambda group, options: [gain_bonus(item) for item in group],
    "leak": lambda group, options: [leak_penalty(item, options=options) for item in group],
}
"""All terms, by their name in ``rewards.weights``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shaper:
    """Weighted sum of terms: ``rewards = shaper(inputs)`` for the completions of one context."""

    weights: Mapping[str, float]
    options: ShapingOptions = field(default_factory=ShapingOptions)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(TERMS))
        if unknown:
            raise ValueError(f"`rewards.weights` has {', '.join(unknown)}; choose from {', '.join(TERMS)}.")
        if not any(self.weights.values()):
            raise ValueError("`rewards.weights` has no weight other than 0: every reward would be 0.")

    def __call__(self, inputs: Sequence[RewardInput]) -> list[ShapedReward]:
        """Returns one reward per completion, in order; terms of weight 0 are not computed."""
        # One column of weighted values per term, then one row of parts per completion.
        columns = {
            name: [weight * value for value in TERMS[name](inputs, self.options)]
            for name, weight in self.weights.items()
            if weight
        }
        rows = [{name: column[row] for name, column in columns.items()} for row in range(len(inputs))]
        return [ShapedReward(total=sum(parts.values()), parts=parts) for parts in rows]
