"""Builds the tokenizer, the policy settings and the operator with its variants from a run's options."""

import logging
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import ModelConfig, OperatorConfig, PromptsConfig, RolloutConfig, TrainingConfig
from configs.thinking import UNCLOSED, ThinkingMarks
from rollout.distiller import DistillerOptions
from rollout.forcing import ThinkingLimit
from rollout.imports import imported
from rollout.operators import AgreementOptions, Operator, OperatorOptions, SelectionOptions
from rollout.policy_settings import PolicySettings, RoleSettings
from rollout.prompt_probe import check_prompt
from rollout.prompts import Codec, prompt_texts
from rollout.records import DRAFT, Sampling
from rollout.sampler import Sampler
from rollout.siblings import OPERATORS
from rollout.stages import Stage
from rollout.thinking import split
from rollout.turns import unread
from rollout.workspace import find_distiller

if TYPE_CHECKING:  # plans build operators without loading torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def load_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of ``model.path``.

    Raises:
        FileNotFoundError: If the path is neither a folder nor a possible name on the hub (``owner/model``).
        ValueError: If it is a LoRA adapter, or no tokenizer loads from it.
    """
    from transformers import AutoTokenizer

    path = model.path
    check_model_path(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path is {path!r}, from which no tokenizer loads: {error} It must be an HF folder "
            "(config.json, tokenizer.json, *.safetensors) or the name of a model on the hub."
        ) from error


def check_model_path(path: str) -> None:
    """Checks that ``model.path`` can be a model, without loading anything of it.

    Raises:
        FileNotFoundError: If the path is neither a folder nor a possible name on the hub (``owner/model``).
        ValueError: If it is a LoRA adapter.
    """
    _refuse_adapter(path)
    if not Path(path).is_dir() and not _may_be_on_the_hub(path):
        raise FileNotFoundError(
            f"model.path: the folder {path} does not exist. Set another folder, or create this one: a cold "
            "start (python -m train.coldstart, with the run's experiment) does, if the experiment has one."
        )


def load_codec(model: ModelConfig, rollout: RolloutConfig, prompts: PromptsConfig) -> Codec:
    """Loads the tokenizer of ``model.path`` and the ids that end a turn, and tries the chat template once.

    A chat endpoint applies its own template and ends turns itself: then the tokenizer only counts tokens.
    Logs a warning of each argument of ``model.chat_template_kwargs`` that the template does not read.

    Raises:
        FileNotFoundError: As ``load_tokenizer``.
        ValueError: As ``load_tokenizer`` and ``prompt_texts``, or if the template renders a question to no
            prompt that the policy can answer (``rollout.prompt_probe``).
    """
    tokenizer = load_tokenizer(model)
    texts = prompt_texts(prompts)
    if rollout.chats:
        if prompts.system or texts.shots:
            tokenizer.chat_template = None  # the template here may refuse such turns; the endpoint's counts
        return Codec(tokenizer=tokenizer, system=prompts.system)
    codec = Codec(
        tokenizer=tokenizer,
        stop_ids=tuple(sorted(i for i in _listed_ends(model) if i != tokenizer.eos_token_id)),
        system=prompts.system,
        template_arguments=model.chat_template_kwargs,
    )
    check_prompt(codec, model.path, texts.shots)
    if os.environ.get("RANK", "0") == "0":  # told once, not by every rank
        _warn_unread(model.path, tuple(unread(tokenizer, model.chat_template_kwargs)))
    return codec


@cache  # rank 0 loads the tokenizer twice
def _warn_unread(path: str, names: tuple[str, ...]) -> None:
    for name in names:
        logger.warning(
            "model.chat_template_kwargs.%s has no effect: the chat template of %s does not read it.",
            name, path,
        )  # fmt: skip


def _listed_ends(model: ModelConfig) -> set[int]:
    """Returns the ids that end a completion by the model's files, found as vLLM finds them."""
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model.path)
    except OSError:  # no generation_config.json
        try:
            config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        except (OSError, ValueError):  # a tokenizer alone, for workers that run elsewhere
            return set()
        generation = GenerationConfig.from_model_config(config)
    listed = generation.eos_token_id
    return set() if listed is None else {listed} if isinstance(listed, int) else set(listed)


def _refuse_adapter(path: str) -> None:
    """Raises ValueError for a folder that holds a LoRA adapter: it is no model, and workers ignore it."""
    settings = Path(path, "adapter_config.json")
    if settings.is_file():
        raise ValueError(
            f"model.path is {path!r}, which holds a LoRA adapter ({settings.name}), not a whole model. "
            "Export the model with the adapter merged (python -m train.export without --adapter, or peft's "
            "merge_and_unload) and set model.path to that folder."
        )


def _may_be_on_the_hub(path: str) -> bool:
    """Returns True for ``owner/model``, unless ``owner`` is a local folder: then a folder was meant."""
    owner, _, name = path.partition("/")
    return bool(name) and "/" not in name and owner[:1] not in (".", "~", "") and not Path(owner).is_dir()


def policy_settings(
    operator: OperatorConfig,
    rollout: RolloutConfig,
    sampler: Sampler,
    codec: Codec,
    drafts: Mapping[str, Sampler] | None = None,
) -> PolicySettings:
    """Returns the settings that all problems of a run share; ``drafts`` are samplers of other policies."""
    thinking = operator.thinking
    # A chat endpoint applies its own template and does not return its thinking.
    opened = sampler.continues and codec.opens_thinking(thinking.open)
    marks = ThinkingMarks(open=thinking.open, close=thinking.close, opened_by_prompt=opened)
    sampling = Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_tokens=rollout.max_completion_length,
        seed=0,
        stop_token_ids=codec.stop_ids,
    )

    def limit(thinking_tokens: int) -> ThinkingLimit | None:
        if not thinking_tokens:
            return None
        return _thinking_limit(thinking_tokens, thinking.force, rollout, codec, marks)

    settings = PolicySettings(
        sampler=sampler,
        codec=replace(codec, marks=(thinking.open, thinking.close)),
        prompts=prompt_texts(operator.prompts),
        marks=marks,
        sampling=sampling,
        limit=limit(rollout.thinking_tokens),
        roles={
            role: RoleSettings(
                sampling=replace(
                    sampling, temperature=rollout.temperature_of(role), top_p=rollout.top_p_of(role)
                ),
                limit=limit(rollout.thinking_tokens_of(role)),
            )
            for role in rollout.roles.changed()
        },
    )
    return replace(
        settings, drafts={name: _elsewhere(settings, each) for name, each in (drafts or {}).items()}
    )


def _elsewhere(settings: PolicySettings, sampler: Sampler) -> RoleSettings:
    """Returns how another policy samples drafts: as this one, but on text no id stops or forces a call."""
    own = replace(settings.of(DRAFT), sampler=sampler)
    if sampler.continues:
        return own
    return replace(own, sampling=replace(own.sampling, stop_token_ids=()), limit=None)


def _thinking_limit(
    thinking_tokens: int, force: str, rollout: RolloutConfig, codec: Codec, marks: ThinkingMarks
) -> ThinkingLimit:
    close_ids = codec.encode(marks.close)
    # Requests stop at token ids: a mark of several tokens cannot end the first request.
    return ThinkingLimit(
        thinking_tokens=thinking_tokens,
        answer_tokens=rollout.answer_tokens,
        close_ids=close_ids if len(close_ids) == 1 else (),
        force_ids=codec.encode(force),
        is_open=lambda ids: split(codec.decode(ids), finish="stop", marks=marks).label == UNCLOSED,
    )


def build_operator(config: OperatorConfig) -> Operator:
    """Builds the operator that a config describes.

    Raises:
        ValueError: If ``operator.kind`` names no operator, or ``operator.distiller`` no distiller.
    """
    find_distiller(config.distiller)
    return _operator_class(config.kind)(operator_options(config))


def operator_options(config: OperatorConfig) -> OperatorOptions:
    """Returns the options of an operator of any class, from a config."""
    return OperatorOptions(
        name=config.name,
        schedule=tuple(config.schedule),
        distil=DistillerOptions(
            name=config.distiller,
            top_k=config.top_k,
            kappa=config.workspace_tokens,
            oracle=config.oracle,
            source=config.source,
            tail_tokens=config.tail_tokens,
        ),
        error_analysis=config.error_analysis,
        draft_policy=config.draft_policy,
        quorum=config.quorum,
        outcome=config.outcome,
        selection=SelectionOptions(match_size=config.match_size, votes=config.votes),
        agreement=AgreementOptions(
            share=config.agree_share, least=config.agree_min, max_drafts=config.max_drafts
        ),
    )


def _operator_class(kind: str) -> type[Operator]:
    if kind in OPERATORS:
        return OPERATORS[kind]
    found = imported("operator.kind", kind, "package.module:Class")
    if not (isinstance(found, type) and issubclass(found, Operator)):
        raise ValueError(f"operator.kind is {kind!r}, which is not a subclass of rollout.operators.Operator.")
    return found


def training_calls(config: TrainingConfig) -> tuple[Stage, ...]:
    """Returns the calls that a run's operator makes on one problem in training, by stage.

    Raises:
        ValueError: If the operator does not exist, if it or its distiller declares no calls, or if it
            declares another number of answers than training asks for.
    """
    kind, algo = config.operator.kind, config.algo
    wanted = algo.num_generations
    operator = build_operator(config.operator)
    options = replace(
        operator.options, num_workspaces=algo.num_workspaces, middle_readers=algo.middle_readers
    )
    stages = type(operator)(options).calls(wanted)
    if not isinstance(stages, tuple) or not all(isinstance(stage, Stage) for stage in stages):
        raise ValueError(f"calls of operator.kind {kind} must return a tuple of Stage, got {stages!r}.")
    if (declared := sum(stage.number for stage in stages[-1:])) != wanted:
        raise ValueError(
            f"The last stage that calls of operator.kind {kind} returns has {declared} calls. It must hold "
            f"the answers, and training asks for {wanted} answers (algo.num_generations)."
        )
    return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Options that are drawn again for each problem; empty keeps the operator's own value.

    Raises:
        ValueError: If a name in ``distillers`` is not a distiller.
    """

    drafts: tuple[int, ...] = ()
    """Minimum and maximum of the first round's drafts (M)."""
    top_k: tuple[int, ...] = ()
    """Minimum and maximum of the drafts that a distiller keeps (k); the built-in distillers draw it again for
    each workspace."""
    distillers: tuple[str, ...] = ()
    """Distillers to choose from: names, or import paths of custom ones."""

    def __post_init__(self) -> None:
        for name in self.distillers:
            find_distiller(name, "operator.distillers")

    def draw(self, operator: Operator, rng: random.Random) -> Operator:
        """Returns ``operator`` with values drawn uniformly from the ranges."""
        options = operator.options
        distil = options.distil
        if self.drafts:
            options = replace(options, schedule=(rng.randint(*self.drafts), *options.schedule[1:]))
        if self.top_k:
            distil = replace(distil, top_k=rng.randint(*self.top_k), top_k_range=self.top_k)
        if self.distillers:
            distil = replace(distil, name=rng.choice(self.distillers))
        return type(operator)(replace(options, distil=distil))
