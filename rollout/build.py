"""Builds the policy settings and the operator with its variants from a run's options."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from configs.schema import OperatorConfig, RolloutConfig, TrainingConfig
from configs.thinking import UNCLOSED, ThinkingMarks
from rollout.codec import Codec
from rollout.distiller import DistillerOptions
from rollout.forcing import ThinkingLimit
from rollout.imports import imported
from rollout.operators import AgreementOptions, Operator, OperatorOptions, SelectionOptions
from rollout.policy_settings import PolicySettings, RoleSettings
from rollout.prompts import prompt_texts
from rollout.records import DRAFT, Sampling
from rollout.sampler import Sampler
from rollout.siblings import OPERATORS
from rollout.stages import Stage
from rollout.thinking import split
from rollout.workspace import find_distiller


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
