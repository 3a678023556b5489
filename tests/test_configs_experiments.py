"""Shipped experiments: the longest prompt, the longest answer and a forced close fit in max_model_len."""

import pytest
from conftest import REPO
from fakes import CODEC

from configs.compose import load
from rollout.problems.composed import compose
from rollout.prompts import prompt_texts

TEMPLATE_TOKENS = 64
"""More than what the chat templates of Qwen3 and Llama 3.1 add to a question."""
EXPERIMENTS = {path.stem for path in (REPO / "configs" / "experiment").glob("*.yaml")}
PRETRAINED = {
    **dict.fromkeys(("qwen3_8b_pdr", "llama31_8b_pdr", "qwen3_8b_ppo", "thinking_8b"), 2048),
    **dict.fromkeys(("paper_eval", "family_eval"), 2048),
    **dict.fromkeys(("instruct_small", "continual", "ppo", "aggregation_only"), 1024),
    "gsm8k_small": 512,
    "family_small": 64,
}
"""Experiment -> tokens of the longest question; longer ones are refused by the workers."""
EVALUATIONS = {"paper_eval", "family_eval", "family_small"}
PAPER_LIMITS = ([], ["rollout.thinking_tokens=24576"])
"""Of paper_eval's thinking, the longest that its file names."""
SUM = "State the final answer to the following arithmetic problem: {} ="
SMALL = {
    "demo": SUM.format(" + ".join("99999")),
    "paper_small": SUM.format(" + ".join("9" * 9)),
    "pretrained_small": SUM.format(" + ".join("999")),
    "compositional": compose([(SUM.format(" + ".join("999")), "27")] * 12)[0],
}
"""Experiment -> its longest question."""
STUDIES = {"paper_small": "paper_small", "compositional_study": "compositional", "amortise_study": "demo"}
"""Studies -> whose question and limits they have."""


def test_every_experiment_is_looked_at():
    assert PRETRAINED.keys() | SMALL.keys() | STUDIES.keys() == EXPERIMENTS


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_full_prompt_and_a_forced_answer_fit_in_the_model(name: str):
    base = [f"experiment={name}", "data.path=x", "model.path=x"]
    for limits in PAPER_LIMITS if name == "paper_eval" else ([],):
        config = load("evaluation" if name in EVALUATIONS else "job", [*base, *limits])
        rollout, operator = config.rollout, config.operator
        texts = prompt_texts(operator.prompts)
        # No tokenizer is at hand: a text has at most as many tokens as bytes.
        longest = max(len(text.encode()) for text in (texts.solve, texts.refine, texts.distil, texts.verify))
        prompt = PRETRAINED[name] + operator.workspace_tokens + longest + TEMPLATE_TOKENS
        forced = len(operator.thinking.force.encode())
        assert prompt + rollout.call_tokens + forced <= rollout.max_model_len


@pytest.mark.parametrize("name", SMALL)
def test_a_full_prompt_fits_in_the_policy_of_a_small_study(name: str):
    if name in STUDIES:
        study = load("study", [f"experiment={name}"])
        config = load("training", list(study.training))
    else:
        config = load("training", [f"experiment={name}", "model.path=x"])
    texts = prompt_texts(config.operator.prompts)
    refine = texts.refine_text(SMALL[name], "x" * config.operator.workspace_tokens)
    prompt = len(CODEC.prompt(refine).ids)
    assert prompt + config.rollout.call_tokens <= config.rollout.max_model_len
