import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.records import DISTIL, DRAFT, REFINE, TRACE
from train.loss.averaging import mean_over_longest, mean_over_sequences, mean_over_tokens, role_weights

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@given(LENGTHS, st.sampled_from([mean_over_tokens, mean_over_sequences]))
def test_the_weights_of_a_mean_sum_to_one(lengths, weights):
    each = weights(lengths, 50)
    assert sum(w * length for w, length in zip(each, lengths, strict=True)) == pytest.approx(1)


@given(LENGTHS)
def test_equal_lengths_make_all_three_averages_proportional(lengths):
    equal = [lengths[0]] * len(lengths)
    assert mean_over_tokens(equal) == pytest.approx(mean_over_sequences(equal))
    assert mean_over_longest(equal, lengths[0]) == pytest.approx(mean_over_tokens(equal))


def test_each_average_is_its_formula():
    assert mean_over_tokens([1, 3], 10) == [1 / 4, 1 / 4]
    assert mean_over_sequences([1, 3], 10) == [1 / 2, 1 / 6]
    assert mean_over_longest([1, 3], 10) == [1 / 20, 1 / 20]


def test_no_sequence_or_no_token_is_no_division_by_zero():
    assert mean_over_tokens([]) == mean_over_sequences([]) == []
    assert mean_over_tokens([0, 0]) == [1.0, 1.0]
    assert mean_over_sequences([0, 2]) == [1 / 2, 1 / 4]


def test_role_weights_sum_to_one_and_absent_roles_give_theirs_away():
    assert role_weights([TRACE, REFINE], operator_fraction=0.25) == {REFINE: 0.25, TRACE: 0.75}
    assert role_weights([TRACE], operator_fraction=0.25) == {TRACE: 1.0}
    assert role_weights([REFINE, REFINE], operator_fraction=0.25) == {REFINE: 1.0}
    assert role_weights([REFINE, DISTIL], operator_fraction=0.5) == {DISTIL: 0.5, REFINE: 0.5}
    coefs = {DISTIL: 3.0, DRAFT: 0.5}
    weights = role_weights([TRACE, REFINE, DISTIL], operator_fraction=0.5, coefs=coefs)
    assert weights == {TRACE: 0.5, REFINE: 0.125, DISTIL: 0.375}
    with pytest.raises(ValueError, match=r"algo\.operator_fraction is 1\.0"):
        role_weights([TRACE], operator_fraction=1.0)
