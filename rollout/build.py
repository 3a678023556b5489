"""From the options of a run to its tokenizer, the settings of its policy, and its operator with variants."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import ModelConfig, OperatorConfig, RolloutConfig, TrainingConfig
from configs.thinking import UNCLOSED, ThinkingMarks
from rollout.distiller import DistillerOptions
from rollout.forcing import ThinkingLimit
from rollout.imports import imported
from rollout.operators import OPERATORS, Operator, OperatorOptions
from rollout.policy import PolicySettings
from rollout.prompts import Codec, prompt_texts
from rollout.records import Sampling
from rollout.sampler import Sampler
from rollout.stages import Stage
from rollout.thinking import split
from rollout.workspace import find_distiller

if TYPE_CHECKING:  # a plan builds operators, too, and loads no torch
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of ``model.path``.

    Raises:
        FileNotFoundError: If the path is neither a folder nor could be a name on the hub (``owner/model``).
        ValueError: If no tokenizer loads from it.
    """
    from transformers import AutoTokenizer

    path = model.path
    if not Path(path).is_dir() and not _may_be_on_the_hub(path):
        raise FileNotFoundError(
            f"model.path: the folder {path} does not exist. Give another, or make it: a cold start "
            "(python -m train.coldstart, with the run's experiment) does, if that has one."
        )
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path is {path!r}, from which no tokenizer loads: {error} It must be an HF folder "
            "(config.json, tokenizer.json, *.safetensors) or the name of a model on the hub."
        ) from error


def _may_be_on_the_hub(path: str) -> bool:
    """``owner/model``, unless ``owner`` is a folder here: then a folder was meant."""
    owner, _, name = path.partition("/")
    return bool(name) and "/" not in name and owner[:1] not in (".", "~", "") and not Path(owner).is_dir()


def policy_settings(
    operator: OperatorConfig,
    rollout: RolloutConfig,
    sampler: Sampler,
    tokenizer: "PreTrainedTokenizerBase",
) -> PolicySettings:
    """What all problems of a run share."""
    codec = Codec(tokenizer=tokenizer)
    thinking = operator.thinking
    # An endpoint that chats has a template of its own, and keeps its thinking to itself.
    opened = sampler.continues and codec.opens_thinking(thinking.open)
    marks = ThinkingMarks(open=thinking.open, close=thinking.close, opened_by_prompt=opened)
    return PolicySettings(
        sampler=sampler,
        codec=codec,
        prompts=prompt_texts(operator.prompts),
        marks=marks,
        sampling=Sampling(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_tokens=rollout.max_completion_length,
            seed=0,
        ),
        limit=_thinking_limit(thinking.force, rollout, codec, marks) if rollout.thinking_tokens else None,
    )


def _thinking_limit(force: str, rollout: RolloutConfig, codec: Codec, marks: ThinkingMarks) -> ThinkingLimit:
    close_ids = codec.encode(marks.close)
    return ThinkingLimit(
        thinking_tokens=rollout.thinking_tokens,
        answer_tokens=rollout.answer_tokens,
        close_ids=close_ids if len(close_ids) == 1 else (),
        force_ids=codec.encode(force),
        is_open=lambda ids: split(codec.decode(ids), finish="stop", marks=marks).label == UNCLOSED,
    )


def build_operator(config: OperatorConfig) -> Operator:
    """The operator that a config describes.

    Raises:
        ValueError: If ``operator.kind`` names no operator, or ``operator.distiller`` no distiller.
    """
    find_distiller(config.distiller)
    return _operator_class(config.kind)(operator_options(config))


def operator_options(config: OperatorConfig) -> OperatorOptions:
    """What an operator of any class is told by a config."""
    return OperatorOptions(
        name=config.name,
        schedule=tuple(config.schedule),
        distil=DistillerOptions(
            name=config.distiller,
            top_k=config.top_k,
            kappa=config.workspace_tokens,
            oracle=config.oracle,
        ),
        error_analysis=config.error_analysis,
        quorum=config.quorum,
    )


def _operator_class(kind: str) -> type[Operator]:
    if kind in OPERATORS:
        return OPERATORS[kind]
    found = imported("operator.kind", kind, "package.module:Class")
    if not (isinstance(found, type) and issubclass(found, Operator)):
        raise ValueError(f"operator.kind is {kind!r}, which is no subclass of rollout.operators.Operator.")
    return found


def training_calls(config: TrainingConfig) -> tuple[Stage, ...]:
    """The calls that the operator of a run makes on one problem in training, stage after stage.

    Raises:
        ValueError: If there is no such operator, it or its distiller declares no calls, or another number of
            answers than training asks for.
    """
    kind, wanted = config.operator.kind, config.algo.num_generations
    operator = build_operator(config.operator)
    operator = type(operator)(replace(operator.options, num_workspaces=config.algo.num_workspaces))
    stages = operator.calls(wanted)
    if not isinstance(stages, tuple) or not all(isinstance(stage, Stage) for stage in stages):
        raise ValueError(f"calls of operator.kind {kind} must return a tuple of Stage, got {stages!r}.")
    if (declared := sum(stage.number for stage in stages[-1:])) != wanted:
        raise ValueError(
            f"The last stage that calls of operator.kind {kind} returns has {declared} calls. It must hold "
            f"the answers, and training asks for {wanted} (algo.num_generations)."
        )
    return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What is drawn anew for each problem; empty leaves the operator's own value.

    Raises:
        ValueError: If one of the distillers is none.
    """

    drafts: tuple[int, ...] = ()
    """The least and the most drafts of the first round (M)."""
    top_k: tuple[int, ...] = ()
    """The least and the most drafts that a distiller keeps (k)."""
    distillers: tuple[str, ...] = ()
    """Names to choose from, or import paths of distillers of one's own."""

    def __post_init__(self) -> None:
        for name in self.distillers:
            find_distiller(name, "operator.distillers")

    def draw(self, operator: Operator, rng: random.Random) -> Operator:
        """``operator`` with values drawn uniformly from the ranges."""
        options = operator.options
        distil = options.distil
        if self.drafts:
            options = replace(options, schedule=(rng.randint(*self.drafts), *options.schedule[1:]))
        if self.top_k:
            distil = replace(distil, top_k=rng.randint(*self.top_k))
        if self.distillers:
            distil = replace(distil, name=rng.choice(self.distillers))
        return type(operator)(replace(options, distil=distil))
