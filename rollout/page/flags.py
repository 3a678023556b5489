"""What is notable about a rollout: the filters of the run page, and which rollouts it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.records import ATTEMPTS, Linked, drafts_behind

WRONG_TO_RIGHT = "wrong to right"
RIGHT_TO_WRONG = "right to wrong"
ALL_WRONG = "all drafts wrong"
TRUNCATED = "truncated"
FAILED_CHECK = "check failed"
FLAGS = {
    WRONG_TO_RIGHT: "a right attempt at least half of whose drafts are wrong",
    RIGHT_TO_WRONG: "a wrong attempt at least half of whose drafts are right",
    ALL_WRONG: "drafts were made and none is right",
    TRUNCATED: "a call reached its token limit",
    FAILED_CHECK: "a verdict is timeout or error: the check failed, and says nothing about the answer",
}
"""Flag -> definition."""


class Judged(Linked, Protocol):
    """The part of a call that the flags depend on."""

    @property
    def round(self) -> int: ...
    @property
    def finish(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Numbers and flags of a rollout; see ``RolloutView``."""

    flags: tuple[str, ...]
    chosen: tuple[int, ...]
    right: int
    drafts: int
    drafts_right: int
    tokens: int


def facts_of(calls: Sequence[Judged], chosen: tuple[int, ...] | None) -> Facts:
    """Returns the facts of a rollout.

    Drafts are the attempts behind the answers' workspaces; for an answer that was chosen among attempts, as
    by a vote, all attempts.

    Args:
        calls: Its calls.
        chosen: Positions of its answers; None: the attempts of the last round.
    """
    attempts = [place for place, call in enumerate(calls) if call.role in ATTEMPTS]
    if chosen is None:
        last = max((calls[place].round for place in attempts), default=0)
        chosen = tuple(place for place in attempts if calls[place].round == last)
    drafts = {draft for place in chosen for draft in drafts_behind(calls, place)}
    if not drafts and len(attempts) > len(chosen):
        drafts = set(attempts)
    right_drafts = [draft for draft in drafts if _is_right(calls[draft])]
    flipped = {flip for place in attempts for flip in _flips(calls, place)}
    found = {
        WRONG_TO_RIGHT: WRONG_TO_RIGHT in flipped,
        RIGHT_TO_WRONG: RIGHT_TO_WRONG in flipped,
        ALL_WRONG: bool(drafts) and not right_drafts,
        TRUNCATED: any(call.finish == "length" or call.label == "truncated" for call in calls),
        FAILED_CHECK: any(call.verdict in ("timeout", "error") for call in calls),
    }
    return Facts(
        flags=tuple(flag for flag, holds in found.items() if holds),
        chosen=chosen,
        right=sum(_is_right(calls[place]) for place in chosen),
        drafts=len(drafts),
        drafts_right=len(right_drafts),
        tokens=sum(call.prompt_tokens + call.completion_tokens for call in calls),
    )


def _flips(calls: Sequence[Judged], place: int) -> list[str]:
    """Returns the flips from an attempt's drafts to the attempt; none without verdicts."""
    judged = [draft for draft in drafts_behind(calls, place) if calls[draft].verdict is not None]
    if not judged or calls[place].verdict is None:
        return []
    right = sum(_is_right(calls[draft]) for draft in judged)
    if _is_right(calls[place]):
        return [WRONG_TO_RIGHT] if 2 * right <= len(judged) else []
    return [RIGHT_TO_WRONG] if 2 * right >= len(judged) else []


def _is_right(call: Judged) -> bool:
    return call.verdict == "correct"
