"""From the options of a run to a scorer and a shaper; the page's own example of a custom reward."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import REPO

from configs.compose import load
from configs.schema import RewardsConfig, ThinkingConfig
from configs.schema.rewards import ANSWER_FORMS, WeightsConfig
from rewards.answers.extract import FORMS
from rewards.build import build_scorer, build_shaper
from rewards.shaping import TERMS, RewardInput
from rewards.verdict import Verdict

NEEDED = ["model.path=x", "data.path=x"]


def composed(*overrides: str) -> RewardsConfig:
    return load("training", [*NEEDED, *overrides]).rewards


def test_the_schema_knows_every_form_and_term() -> None:
    assert ANSWER_FORMS == FORMS
    assert list(TERMS) == [field.name for field in fields(WeightsConfig)]


def test_the_options_of_a_run_reach_the_scorer() -> None:
    config = composed("rewards.forms=[marker]")
    thinking = ThinkingConfig(open="[[", close="]]", force=" ]] ")
    with build_scorer(config, thinking, prompt_opens_thinking=True) as scorer:
        assert scorer.score_sync(gold="42", completion="a ]] The answer is 42").found_by == "marker"
        assert scorer.score_sync(gold="42", completion=r"thinking \boxed{42}").status == "unparsable"


def test_terms_composed_in_yaml_are_weighted_and_kept_apart() -> None:
    config = composed("rewards=shaped", "rewards.weights.overlong=2.0", "rewards.overlong_buffer=20")
    assert build_shaper(composed("rewards.weights.copy=0.5"), ThinkingConfig()).weights["copy"] == 0.5
    shaper = build_shaper(config, ThinkingConfig())
    correct = Verdict(status="correct", answer="1", found_by="box")
    item = RewardInput(verdict=correct, completion=r"\boxed{1}", num_tokens=90, max_tokens=100)
    (reward,) = shaper([item])
    assert set(reward.parts) == set(TERMS)
    assert {name: part for name, part in reward.parts.items() if part} == {"outcome": 1.0, "overlong": -1.0}
    assert reward.total == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forms": ["box"]}, "rewards.forms is 'box'; choose one of tag"),
        ({"wrong_reward": 1.0}, "rewards.wrong_reward must be below 1"),
        ({"kind": "custom"}, "rewards.path must name package.module:function"),
        ({"kind": "custom", "path": "module.function"}, "got 'module.function'"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_before_anything_starts(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RewardsConfig(**options)


def test_a_reward_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="every reward would be 0"):
        WeightsConfig(outcome=0.0)


def test_the_custom_reward_of_the_page_runs_in_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPO / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n# my_project/rewards\.py\n(.*?)```", page, re.S)
    assert example is not None
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "rewards.py").write_text(example[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    config = composed("rewards=custom", "rewards.path=my_project.rewards:even_number")
    with build_scorer(config, ThinkingConfig()) as scorer:
        verdict = scorer.score_sync(gold="", completion="so 14")
        assert (verdict.status, verdict.value) == ("correct", 1.0)
        assert scorer.score_sync(gold="", completion="so 15").status == "wrong"
        assert len(scorer.worker_pids()) >= 1


def test_the_order_of_lists_is_set_by_the_config_in_yaml_spelling() -> None:
    scorer = build_scorer(RewardsConfig(ordered_lists="True"), ThinkingConfig())
    assert not scorer.equivalent_sync(gold="1, 2", answer="2, 1").is_correct
    scorer.close()
    with pytest.raises(ValueError, match=r"rewards\.ordered_lists"):
        RewardsConfig(ordered_lists="sometimes")
