"""The order of problems, and those that are drawn no more."""

from collections import Counter

import pytest
from fakes import ScriptedPolicy, operator, problem, roll

from rollout.collection.problem_stream import ProblemStream
from rollout.records import Rollout

PROBLEMS = [problem(f"p{i}") for i in range(6)]


def _attempts(name: str, *, right: int, wrong: int) -> Rollout:
    """A rollout of plain attempts on one problem."""
    numbers = iter([2] * right + [3] * wrong)
    policy = ScriptedPolicy(script=lambda request, rng: f"\\boxed{{{next(numbers)}}}")
    return roll(policy, operator((1,), name="trace"), name=name, num_answers=right + wrong)


def _names(stream: ProblemStream, num: int) -> list[str]:
    return [drawn.id for drawn in stream.draw(num)]


def test_how_many_are_drawn_at_once_does_not_change_the_order():
    one, other = ProblemStream(PROBLEMS, seed=1), ProblemStream(PROBLEMS, seed=1)
    assert _names(one, 15) == [name for num in (4, 1, 7, 3) for name in _names(other, num)]


def test_a_problem_that_became_too_easy_is_drawn_no_more():
    stream = ProblemStream(PROBLEMS, seed=0, max_pass_rate=0.9, min_attempts=10)
    stream.remember([_attempts("p3", right=9, wrong=1), _attempts("p4", right=8, wrong=2)])
    names = _names(stream, 20)
    assert set(names) == {"p0", "p1", "p2", "p4", "p5"}


def test_a_curriculum_draws_a_problem_as_often_as_its_rewards_vary():
    stream = ProblemStream(PROBLEMS[:4], seed=0, min_attempts=8, by_learnability=True)
    known = {"p0": (4, 4), "p1": (8, 0), "p2": (7, 1)}
    stream.remember(_attempts(name, right=right, wrong=wrong) for name, (right, wrong) in known.items())
    counts = Counter(_names(stream, 2000))
    epochs = counts["p0"]  # half of its attempts were right: it is in every epoch
    assert abs(counts["p3"] - epochs) <= 1  # nothing is known about it
    assert counts["p1"] / epochs == pytest.approx(0.1, abs=0.03)
    assert counts["p2"] / epochs == pytest.approx(4 * 7 / 64, abs=0.05)


def test_a_curriculum_resumes_from_its_state():
    first = ProblemStream(PROBLEMS, seed=2, by_learnability=True)
    first.remember([_attempts("p2", right=3, wrong=1), _attempts("p4", right=4, wrong=0)])
    first.draw(7)
    second = ProblemStream(PROBLEMS, seed=2, by_learnability=True)
    second.load_state_dict(first.state_dict())
    assert _names(first, 40) == _names(second, 40)


def test_history_adds_up_and_few_attempts_decide_nothing():
    stream = ProblemStream(PROBLEMS, seed=0, max_pass_rate=1.0, min_attempts=8)
    stream.remember([_attempts("p0", right=4, wrong=0)])
    assert "p0" in _names(stream, 6)
    stream.remember([_attempts("p0", right=4, wrong=0)])
    assert "p0" not in _names(stream, 12)


def test_refinements_do_not_count_as_plain_attempts():
    stream = ProblemStream(PROBLEMS, seed=0)
    numbers = iter([3, 3, 3, 2])
    policy = ScriptedPolicy(script=lambda request, rng: f"\\boxed{{{next(numbers)}}}")
    stream.remember([roll(policy, operator((3, 1), "all"), name="p1")])
    assert stream.state_dict()["history"] == {"p1": [0, 3]}


def test_a_stream_goes_on_from_its_state():
    first = ProblemStream(PROBLEMS, seed=2, max_pass_rate=0.5, min_attempts=2)
    first.draw(4)
    first.remember([_attempts("p2", right=2, wrong=0)])
    second = ProblemStream(PROBLEMS, seed=2, max_pass_rate=0.5, min_attempts=2)
    second.load_state_dict(first.state_dict())
    assert _names(first, 20) == _names(second, 20)


def test_when_everything_is_too_easy_the_run_is_told():
    stream = ProblemStream(PROBLEMS[:2], seed=0, max_pass_rate=0.5, min_attempts=1)
    stream.remember([_attempts(name, right=1, wrong=0) for name in ("p0", "p1")])
    with pytest.raises(
        RuntimeError, match=r"All 2 problems are solved .* collect\.max_history_pass_rate = 0\.5"
    ):
        stream.draw(1)
    with pytest.raises(RuntimeError, match=r"there is nothing left to draw"):
        stream.draw_extra(1, seed=0, besides=())


def test_extra_problems_depend_on_their_seed_alone_and_are_others_while_there_are_some():
    stream = ProblemStream(PROBLEMS, seed=0, max_pass_rate=0.9, min_attempts=1)
    stream.remember([_attempts("p3", right=1, wrong=0)])
    before = stream.state_dict()

    def extra(num: int, *besides: str, seed: int = 7) -> list[str]:
        return [drawn.id for drawn in stream.draw_extra(num, seed=seed, besides=besides)]

    assert sorted(extra(3, "p0", "p1")) == ["p2", "p4", "p5"]
    assert extra(2) == extra(2)
    assert len({tuple(extra(2, seed=seed)) for seed in range(20)}) > 5
    short = extra(4, "p0", "p1", "p2")
    assert {"p4", "p5"} <= set(short) <= {"p0", "p1", "p2", "p4", "p5"}
    assert stream.state_dict() == before


def test_a_state_is_not_shared_with_the_stream_that_gave_it():
    stream = ProblemStream(PROBLEMS, seed=0)
    stream.remember([_attempts("p0", right=1, wrong=0)])
    state = stream.state_dict()
    stream.remember([_attempts("p0", right=1, wrong=0)])
    assert state["history"] == {"p0": [1, 1]}
