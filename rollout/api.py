"""Python interface of the operators, for notebooks and scripts (docs/python.md).

Policy, operators and verifier are composed as in ``python -m rollout``, so answers are extracted and votes
are counted by the verifier that training uses.
"""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.compose import load, with_options
from configs.schema import DataConfig, RewardsConfig
from rewards.build import build_scorer, gold_checker
from rewards.grader import Grader
from rollout.build import policy_settings
from rollout.engine import RolloutEngine
from rollout.opened import COMPOSING, OpenPolicy, OperatorSpec
from rollout.operators import Operator
from rollout.problems.loading import load_rows, load_train
from rollout.records import Problem
from rollout.result import Evaluation, Result
from rollout.tokenizer import load_codec

ROW_FIELDS = ("question_field", "answer_field", "on_bad_gold")
"""Fields of ``configs.schema.DataConfig`` that determine how rows are read."""


def open_policy(
    model: str | Path,
    *,
    urls: str | Sequence[str] = (),
    chat_url: str = "",
    thinking: str = "think",
    system: str = "",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> OpenPolicy:
    """Starts a local vLLM worker or connects to running endpoints; returns when they answer.

    Args:
        model: An HF folder, or the name of a model on the hub. With ``chat_url``, used only to count tokens.
        urls: vLLM servers to use instead of a local one.
        chat_url: An OpenAI-compatible endpoint to use instead, with ``chat_model``.
        thinking: Marks of the model's thinking: the name of a file in configs/operator/thinking.
        system: System prompt of every call.
        chat_template_kwargs: Further arguments of the model's chat template, e.g. ``enable_thinking``.
        options: Other fields of ``configs.schema.RolloutConfig``, e.g. ``max_completion_length``.

    Raises:
        ValueError: If an option does not exist (the message names the nearest valid one) or fails a check, or
            no tokenizer can be loaded from the model, or its chat template makes no usable prompt.
        FileNotFoundError: If ``model`` is a folder that does not exist.
        RuntimeError: If the worker does not start, or an endpoint does not answer.
    """
    with COMPOSING:  # neither path is used: the model is set below, and problems are passed in
        unused = ["model.path=unused", "data.path=unused"]
        config = load("evaluation", [*unused, f"operator/thinking={thinking}"])
    endpoints = {"urls": [urls] if isinstance(urls, str) else list(urls), "chat_url": chat_url}
    rollout = with_options(config.rollout, {**endpoints, **options}, "rollout")
    config = replace(
        config,
        model=replace(config.model, path=str(model), chat_template_kwargs=dict(chat_template_kwargs or {})),
        operator=replace(config.operator, prompts=replace(config.operator.prompts, system=system)),
        rollout=rollout,
    )
    codec = load_codec(config.model, rollout, config.operator.prompts)
    marks = config.operator.thinking
    # A chat endpoint applies its own template.
    opened = not rollout.chats and codec.opens_thinking(marks.open)
    logs = Path(tempfile.gettempdir()) / f"rollout_{uuid.uuid4().hex[:12]}"  # created by a local worker
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(build_scorer(config.rewards, marks, prompt_opens_thinking=opened))
        engine = stack.enter_context(RolloutEngine(rollout, str(model), logs))
        settings = policy_settings(config.operator, rollout, engine.sampler, codec, engine.drafts)
        resources = contextlib.ExitStack()
        resources.callback(shutil.rmtree, logs, ignore_errors=True)  # kept if a worker failed to start
        resources.enter_context(stack.pop_all())
        return OpenPolicy(config, engine, settings, Grader(scorer), resources)


def run(
    policy: OpenPolicy,
    question: str,
    *,
    operator: str | type[Operator] = "pdr",
    seed: int = 0,
    **options: Any,
) -> Result:
    """Runs an operator on a question and returns its answer. Inside a running event loop it blocks the loop.

    Args:
        policy: An open policy.
        question: The text of a problem, which the operator's prompts embed.
        operator: The name of a file in configs/operator, or a subclass of ``rollout.operators.Operator``.
        seed: Equal seeds request equal samples.
        options: Fields of ``configs.schema.OperatorConfig``, e.g. ``schedule``, ``distiller``, ``top_k``.

    Raises:
        ValueError: If the question is empty, or an option does not exist or fails a check.
        RuntimeError: If the policy is closed, or one of the calls gets no answer.
    """
    return policy.wait(policy.asked(question, operator, seed, options))


async def run_async(
    policy: OpenPolicy,
    question: str,
    *,
    operator: str | type[Operator] = "pdr",
    seed: int = 0,
    **options: Any,
) -> Result:
    """Like ``run``, without blocking; ``asyncio.gather`` runs many questions at once."""
    return await policy.wait_async(policy.asked(question, operator, seed, options))


def pdr(policy: OpenPolicy, question: str, **options: Any) -> Result:
    """Runs Parallel-Distill-Refine, e.g. ``schedule=[8, 4, 1]``. Options and errors are those of ``run``."""
    return run(policy, question, operator="pdr", **options)


def sr(policy: OpenPolicy, question: str, **options: Any) -> Result:
    """Runs sequential refinement, e.g. ``schedule=[1, 1, 1]``. Options and errors are those of ``run``."""
    return run(policy, question, operator="sr", **options)


def trace(policy: OpenPolicy, question: str, **options: Any) -> Result:
    """Runs one chain of thought. Options and errors are those of ``run``."""
    return run(policy, question, operator="trace", **options)


def majority(policy: OpenPolicy, question: str, **options: Any) -> Result:
    """Runs a majority vote of ``schedule=[n]`` traces. Options and errors are those of ``run``."""
    return run(policy, question, operator="majority", **options)


def best_of_n(policy: OpenPolicy, question: str, **options: Any) -> Result:
    """Runs ``schedule=[n]`` traces and returns the one that the policy trusts most.

    Options and errors are those of ``run``.
    """
    return run(policy, question, operator="best_of_n", **options)


def evaluate(
    policy: OpenPolicy,
    problems: str | Path | Iterable[Mapping[str, Any]],
    *,
    operators: Sequence[OperatorSpec],
    samples: int = 1,
    seed: int = 0,
    **fields: str,
) -> Evaluation:
    """Evaluates operators: accuracy with intervals and budgets, compared with votes of equal cost.

    The votes are majority votes of as many traces as each operator costs.

    Args:
        policy: An open policy.
        problems: Rows with the fields ``question`` and ``answer`` (the gold answer): a list of dictionaries,
            a data set, or the path of a JSONL file. The fields ``id`` and ``source`` are optional.
        operators: Names, classes, or keyword arguments of ``run``:
            ``["trace", {"operator": "pdr", "schedule": [8, 4, 1]}]``. ``name`` distinguishes two operators
            of one kind.
        samples: Rollouts per problem and operator.
        seed: Equal seeds request equal samples.
        fields: ``question_field``, ``answer_field`` and ``on_bad_gold`` of ``configs.schema.DataConfig``.

    Raises:
        ValueError: If a row lacks a field, its gold answer does not parse, ids repeat, or an operator fails
            a check.
        RuntimeError: If the policy is closed, or no rollout got an answer.
    """
    return policy.wait(policy.compared(_problems(problems, fields), operators, samples, seed))


async def evaluate_async(
    policy: OpenPolicy,
    problems: str | Path | Iterable[Mapping[str, Any]],
    *,
    operators: Sequence[OperatorSpec],
    samples: int = 1,
    seed: int = 0,
    **fields: str,
) -> Evaluation:
    """Like ``evaluate``, without blocking while rollouts are sampled."""
    return await policy.wait_async(policy.compared(_problems(problems, fields), operators, samples, seed))


def _problems(
    source: str | Path | Iterable[Mapping[str, Any]], fields: Mapping[str, Any]
) -> Sequence[Problem]:
    unknown = sorted(fields.keys() - set(ROW_FIELDS))
    if unknown:
        raise TypeError(f"evaluate has no option '{unknown[0]}'; rows are read by {', '.join(ROW_FIELDS)}.")
    check_gold = gold_checker(RewardsConfig())
    if isinstance(source, str | Path):
        return load_train(DataConfig(path=str(source), **fields), check_gold)
    return load_rows(source, DataConfig(path="unused", **fields), check_gold)
