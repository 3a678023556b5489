"""Builds the filter of a run's groups from its options, with the filters of papers and the user's own."""

import re

from configs.schema import FILTERS, CollectConfig
from rollout.collection.groups import GroupFilter, OwnFilter
from rollout.groups import Group
from rollout.imports import imported
from rollout.records import Rollout

REASON = re.compile(r"[a-z0-9_]+")


def group_filter(collect: CollectConfig) -> GroupFilter:
    """Returns the filter that a config describes.

    Raises:
        ValueError: If ``collect.filter`` names no function.
    """
    named = FILTERS.get(collect.filter, FILTERS["none"])
    return GroupFilter(
        drop_equal_rewards=collect.drop_equal_rewards,
        max_pass_rate=collect.max_pass_rate,
        draft_accuracy=(collect.draft_accuracy[0], collect.draft_accuracy[1]),
        drafts_between=named.drafts,
        answers_between=named.answers,
        own=None if collect.filter in FILTERS else _own(collect.filter),
    )


def _own(path: str) -> OwnFilter:
    function = imported("collect.filter", path, "package.module:function")
    if not callable(function):
        raise ValueError(
            f"collect.filter is {path!r}, which is not a function. Write it as def "
            f"{path.partition(':')[2]}(group: Group, rollout: Rollout) -> str | None."
        )

    def checked(group: Group, rollout: Rollout) -> str | None:
        reason = function(group, rollout)
        # It is part of a metric's name. True or False would be mistaken for a decision to keep.
        if reason is None or (isinstance(reason, str) and REASON.fullmatch(reason)):
            return reason
        raise ValueError(
            f"The filter {path} returned {reason!r}. It must return None to keep a group, or the reason to "
            "drop it in small letters, digits and underscores, such as 'too_long'."
        )

    return checked
