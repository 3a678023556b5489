"""Shipped experiments: the longest prompt, the longest answer and a forced close fit in max_model_len."""

import pytest
from conftest import REPO
from fakes import CODEC

from configs.compose import load
from rollout.prompts import prompt_texts

TEMPLATE_TOKENS = 64
"""More than what the chat templates of Qwen3 and Llama 3.1 add to a question."""
QUESTION_TOKENS = 2048
"""plan.max_question_tokens: longer ones are refused by the workers."""
EXPERIMENTS = {path.stem for path in (REPO / "configs" / "experiment").glob("*.yaml")}
PRETRAINED = {
    "qwen3_8b_pdr": "job",
    "llama31_8b_pdr": "job",
    "qwen3_8b_ppo": "job",
    "paper_eval": "evaluation",
}
PAPER_LIMITS = ([], ["rollout.thinking_tokens=24576"])
"""Of paper_eval's thinking, the longest that its file names."""
SMALL = {"demo": 5, "paper_small": 9}
"""Terms of a sum, in the studies with a tokenizer of bytes."""


def test_every_experiment_is_looked_at():
    assert PRETRAINED.keys() | SMALL.keys() == EXPERIMENTS


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_full_prompt_and_a_forced_answer_fit_in_the_model(name: str):
    base = [f"experiment={name}", "data.path=x"] + (["model.path=x"] if name == "paper_eval" else [])
    for limits in PAPER_LIMITS if name == "paper_eval" else ([],):
        config = load(PRETRAINED[name], [*base, *limits])
        rollout, operator = config.rollout, config.operator
        texts = prompt_texts(operator.prompts)
        # No tokenizer is at hand: a text has at most as many tokens as bytes.
        longest = max(len(text.encode()) for text in (texts.solve, texts.refine, texts.distil, texts.verify))
        prompt = QUESTION_TOKENS + operator.workspace_tokens + longest + TEMPLATE_TOKENS
        forced = len(operator.thinking.force.encode())
        assert prompt + rollout.call_tokens + forced <= rollout.max_model_len


@pytest.mark.parametrize("name", SMALL)
def test_a_full_prompt_fits_in_the_policy_of_a_small_study(name: str):
    if name == "demo":
        config = load("training", ["experiment=demo"])
    else:
        study = load("study", ["experiment=paper_small"])
        config = load("training", list(study.training))
    question = (
        f"State the final answer to the following arithmetic problem: {' + '.join('9' * SMALL[name])} ="
    )
    texts = prompt_texts(config.operator.prompts)
    refine = texts.refine_text(question, "x" * config.operator.workspace_tokens)
    prompt = len(CODEC.prompt(refine).ids)
    assert prompt + config.rollout.call_tokens <= config.rollout.max_model_len
