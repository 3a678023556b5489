"""Metrics of a batch's rollouts."""

from dataclasses import replace

import pytest
from fakes import ScriptedPolicy, operator, roll

from rollout.records import Rollout, VersionSpan
from train.metrics import kept_cache_share


def _rollout(*spans: tuple[int, int, int]) -> Rollout:
    rollout = roll(ScriptedPolicy(), operator((1,), name="trace"))
    versions = tuple(VersionSpan(version=v, start=start, end=end) for v, start, end in spans)
    return replace(rollout, calls=(replace(rollout.calls[0], versions=versions),))


def test_tokens_after_a_change_of_weights_within_their_call_read_kept_caches():
    assert kept_cache_share([]) == 0
    assert kept_cache_share([_rollout((3, 0, 40))]) == 0
    assert kept_cache_share([_rollout((3, 0, 30), (4, 30, 40))]) == pytest.approx(0.25)
    both = [_rollout((3, 0, 30), (4, 30, 40)), _rollout((4, 0, 60))]
    assert kept_cache_share(both) == pytest.approx(0.1)
