"""The scorer called as TRL's trainers and verl's reward managers call their reward functions."""

import asyncio
import importlib.util
import inspect
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPO

from rewards import AsyncTrlReward, Scorer, TrlReward
from rewards.adapters.trl import last_text


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(forms=(), max_failure_share=1.0) as made:
        yield made


def by_trl(**changes: Any) -> dict[str, Any]:
    """The keywords of ``GRPOTrainer._calculate_rewards``."""
    called = {
        "prompts": ["q1", "q1", "q2"],
        "completions": [r"\boxed{0.5}", r"\boxed{2}", r"\boxed{x+1}"],
        "completion_ids": [[1, 2], [1], [1, 2, 3]],
        "answer": ["1/2", "1/2", "1+x"],
        "trainer_state": object(),
        "log_extra": print,
        "log_metric": print,
    }
    return called | changes


def test_trls_call_gets_one_reward_per_completion(scorer: Scorer) -> None:
    assert TrlReward(scorer)(**by_trl()) == [1.0, 0.0, 1.0]
    assert TrlReward(scorer, wrong_reward=-1.0)(**by_trl()) == [1.0, -1.0, 1.0]


def test_a_check_that_failed_is_none_for_trl(scorer: Scorer) -> None:
    assert TrlReward(scorer)(**by_trl(answer=["1/2", "", "1+x"])) == [1.0, None, 1.0]


def test_chats_are_judged_by_their_last_message(scorer: Scorer) -> None:
    texts = by_trl()["completions"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    prompts = [[{"role": "user", "content": "q"}]] * 3
    for completions in (chats, parts):
        assert TrlReward(scorer)(**by_trl(prompts=prompts, completions=completions)) == [1.0, 0.0, 1.0]
    assert last_text([]) == "" and last_text([{"role": "assistant", "content": None}]) == ""


def test_the_asynchronous_form_is_a_coroutine_function_for_trl_and_the_other_is_not(scorer: Scorer) -> None:
    assert inspect.iscoroutinefunction(AsyncTrlReward(scorer).__call__)
    assert not inspect.iscoroutinefunction(TrlReward(scorer).__call__)
    assert asyncio.run(AsyncTrlReward(scorer)(**by_trl())) == [1.0, 0.0, 1.0]


def test_the_synchronous_form_works_inside_a_notebooks_loop(scorer: Scorer) -> None:
    async def cell() -> list[float | None]:
        return TrlReward(scorer)(**by_trl())

    assert asyncio.run(cell()) == [1.0, 0.0, 1.0]


def test_a_missing_gold_column_is_refused_by_name(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="no column 'gold'; it has answer"):
        TrlReward(scorer, gold_column="gold")(**by_trl())


def test_columns_and_lengths_are_facts_for_a_custom_reward(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "trl_rewards.py").write_text(
        "def level(*, question, num_tokens, level):\n"
        "    return num_tokens + 10 * level + 100 * (question == 'q2')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Scorer(custom_path="trl_rewards:level") as made:
        assert TrlReward(made)(**by_trl(level=[1, 2, 3])) == [12.0, 21.0, 133.0]


@pytest.mark.component
@pytest.mark.parametrize("form", [TrlReward, AsyncTrlReward])
def test_grpo_trains_a_step_on_the_rewards(
    scorer: Scorer, tiny_policy: Path, tmp_path: Path, form: type
) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=4,
        max_steps=1, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    answers = [r"\boxed{0.5}", r"\boxed{2}", r"\boxed{\frac12}", "none"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, list[list]]:
        ids = [tokenizer(text).input_ids for text in answers]
        return {
            "prompt_ids": [tokenizer(prompt).input_ids for prompt in prompts],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(each) for each in ids],
        }

    trainer = GRPOTrainer(
        model=str(tiny_policy),
        reward_funcs=form(scorer),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "half?", "answer": "1/2"}] * 4),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/verifier/mean" in row]
    assert [row["rewards/verifier/mean"] for row in logged] == [0.5]


# --- verl ---------------------------------------------------------------------------------------


def loaded_by_verl() -> ModuleType:
    """The module as ``verl.trainer.ppo.reward.get_custom_reward_fn`` loads it: from a path."""
    path = REPO / "rewards" / "adapters" / "verl.py"
    spec = importlib.util.spec_from_file_location("custom_module", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_module"] = module
    spec.loader.exec_module(module)
    return module


def by_verl(solution: str, gold: str = "1/2", **options: Any) -> dict[str, Any]:
    """The call of verl's naive reward manager."""
    return loaded_by_verl().compute_score(
        data_source="math", solution_str=solution, ground_truth=gold, extra_info={"index": 3}, **options
    )


def test_verls_call_gets_a_score_and_the_same_keys_every_time() -> None:
    right, wrong, none = by_verl(r"\boxed{0.5}"), by_verl(r"\boxed{2}"), by_verl("no box 0.5")
    assert right == {"score": 1.0, "acc": 1.0, "pred": "0.5", "failed": 0.0}
    assert wrong == {"score": 0.0, "acc": 0.0, "pred": "2", "failed": 0.0}
    assert none.keys() == right.keys() and none["score"] == 0.0
    assert by_verl(r"\boxed{2}", "", wrong_reward=-1.0) == {
        "score": -1.0, "acc": 0.0, "pred": "", "failed": 1.0,
    }  # fmt: skip


def test_verls_other_arguments_are_ignored_and_the_scorers_own_are_used() -> None:
    assert by_verl("The answer is 0.5", forms=["marker"], reward_router_address="x")["score"] == 1.0
    assert by_verl(r"\boxed{B}", "b", kind="exact")["score"] == 0.0


def _in_pool(solution: str) -> float:
    return by_verl(solution, "x^2-1")["score"]


@pytest.mark.component
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_verls_function_works_in_a_pool_of_processes(method: str) -> None:
    assert (
        by_verl(r"\boxed{(x-1)(x+1)}", "x^2-1")["score"] == 1.0
    )  # a scorer of this process, before the fork
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        texts = [r"\boxed{(x-1)(x+1)}", r"\boxed{(x-1)(x+2)}"] * 2
        assert list(pool.map(_in_pool, texts)) == [1.0, 0.0, 1.0, 0.0]
