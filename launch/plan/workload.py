"""What one training step asks for: the calls that are sampled, the tokens and FLOPs that are trained.

Lengths are means, from the assumptions in ``PlanConfig``; limits are the run's own options.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from configs.schema import SHARE_FROM, JobConfig
from launch.plan.architecture import Architecture
from launch.plan.memory import ALONE, Companions, MicroBatchSize


class Stage(Protocol):
    """Calls that an operator makes at the same time on one problem; passed in, so that plans know none."""

    @property
    def role(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def contexts(self) -> int: ...
    @property
    def per_context(self) -> int: ...
    @property
    def solutions(self) -> int:
        """Solutions that a prompt holds beside the question."""
        ...

    @property
    def bound(self) -> int | None:
        """The most tokens of these together; None for no bound."""
        ...


CallsOf = Callable[[JobConfig], Sequence[Stage]]
"""The stages of a run's operator, the answers last. Raises ValueError if they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls of one kind in one step."""

    role: str
    contexts: int
    """Different prompts; each is read once and kept in the worker's prefix cache."""
    per_context: int
    """Completions of each."""
    prompt: int
    """Mean tokens of the prompt."""
    completion: int
    """Mean tokens of a completion."""
    longest_prompt: int
    trained: bool = False
    may_share: bool = True
    """Whether ``train.packing`` lets completions share a prompt."""

    @property
    def number(self) -> int:
        """Completions in all."""
        return self.contexts * self.per_context

    @property
    def prefilled(self) -> int:
        """Prompt tokens that workers read."""
        return self.contexts * self.prompt

    @property
    def decoded(self) -> int:
        """Tokens that workers write."""
        return self.number * self.completion

    @property
    def shares_prompt(self) -> bool:
        """Whether the trainer runs a prompt once for all its completions."""
        if not self.may_share:
            return False
        apart = self.per_context * (self.prompt + self.completion)
        return (self.per_context - 1) * self.prompt >= SHARE_FROM * apart

    @property
    def forwarded(self) -> int:
        """Tokens that go through the trainer's model."""
        prompts = self.contexts if self.shares_prompt else self.number
        return prompts * self.prompt + self.decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One step."""

    calls: tuple[Calls, ...]
    rounds: int
    """Calls that wait for one another on the longest path."""
    call_limit: int
    """The most tokens that one call may write."""

    @property
    def trained(self) -> tuple[Calls, ...]:
        """The calls that the loss sees."""
        return tuple(calls for calls in self.calls if calls.trained)

    @property
    def prefilled(self) -> int:
        """Prompt tokens that workers read."""
        return sum(calls.prefilled for calls in self.calls)

    @property
    def decoded(self) -> int:
        """Tokens that workers write."""
        return sum(calls.decoded for calls in self.calls)

    @property
    def number(self) -> int:
        """Calls in all."""
        return sum(calls.number for calls in self.calls)

    @property
    def mean_context(self) -> float:
        """Tokens that a sequence holds in the KV cache, on average over its decoding."""
        held = sum(calls.number * (calls.prompt + calls.completion / 2) for calls in self.calls)
        return held / self.number

    @property
    def trained_tokens(self) -> int:
        """Tokens in the loss."""
        return sum(calls.decoded for calls in self.trained)

    @property
    def forwarded(self) -> int:
        """Tokens that go through the trainer's model."""
        return sum(calls.forwarded for calls in self.trained)


def companions_of(config: JobConfig) -> Companions:
    """The models that a run trains or asks beside its policy."""
    algo = config.algo
    return Companions(
        critic=algo.has_critic and algo.critic == "own_backbone",
        reference=algo.beta != 0 and not config.model.lora_r,
    )


def adapters_of(config: JobConfig, model: Architecture) -> int:
    """Parameters of a run's LoRA adapters; 0 if every weight is trained."""
    return model.adapters(config.model.lora_r, config.model.lora_target_modules)


def workload_of(config: JobConfig, calls_of: CallsOf) -> Workload:
    """The calls of one step of a run.

    Args:
        config: The run.
        calls_of: What its operator declares; asked only if operators are sampled.

    Raises:
        ValueError: If the operator's calls are not known.
    """
    plan, algo = config.plan, config.algo
    completion = max(1, round(plan.completion_share * config.rollout.call_tokens))
    operators = round(algo.operator_fraction * algo.problems_per_step)
    calls: list[Calls] = []
    if algo.problems_per_step > operators:
        calls.append(
            Calls(
                role="trace",
                contexts=algo.problems_per_step - operators,
                per_context=algo.num_generations,
                prompt=plan.mean_question_tokens,
                completion=completion,
                longest_prompt=plan.max_question_tokens,
                trained=True,
            )
        )
    stages = calls_of(config) if operators else ()
    calls += [_operator_calls(config, stages, stage, operators, completion) for stage in stages]
    most = config.rollout.max_model_len - config.rollout.call_tokens  # workers refuse longer prompts
    calls = [
        replace(
            each,
            prompt=min(each.prompt, most),
            longest_prompt=min(each.longest_prompt, most),
            may_share=config.train.packing == "shared",
        )
        for each in calls
    ]
    return Workload(
        calls=tuple(calls),
        # Verifications are taken to be short, so the longest path leaves them out.
        rounds=sum(stage.role != "verify" for stage in stages) if operators else 1,
        call_limit=config.rollout.call_tokens,
    )


def _operator_calls(
    config: JobConfig, stages: Sequence[Stage], stage: Stage, problems: int, completion: int
) -> Calls:
    """One of the operator's stages on all problems."""
    plan, limit = config.plan, _solution_limit(config)
    held, most = stage.solutions * max(1, round(plan.solution_share * limit)), stage.solutions * limit
    if stage.bound is not None:
        held, most = min(held, stage.bound), stage.bound
    return Calls(
        role=stage.role,
        contexts=problems * stage.contexts,
        per_context=stage.per_context,
        prompt=plan.mean_question_tokens + held,
        completion=completion,
        longest_prompt=plan.max_question_tokens + most,
        trained=_is_trained(config, stage, answers=stages[-1]),
    )


def _is_trained(config: JobConfig, stage: Stage, answers: Stage) -> bool:
    """Answers always are; what leads to them by ``algo.credit``."""
    algo = config.algo
    if stage is answers:
        return True
    if stage.role == "distil":
        return "distil" in algo.credit and stage.round == answers.round - 1
    on_the_way = stage.role in ("draft", "refine") and (stage.round == 0 or algo.credit_rounds == "all")
    return "draft" in algo.credit and on_the_way


def _solution_limit(config: JobConfig) -> int:
    """The most tokens of a solution."""
    rollout = config.rollout
    return rollout.answer_tokens if rollout.thinking_tokens else rollout.max_completion_length


def step_flops(config: JobConfig, model: Architecture, work: Workload) -> float:
    """``training_flops`` of one step of a run, with the models and adapters that its config names."""
    return training_flops(
        model,
        work,
        recomputes=config.model.gradient_checkpointing,
        companions=companions_of(config),
        adapters=adapters_of(config, model),
    )


def training_flops(
    model: Architecture,
    work: Workload,
    *,
    recomputes: bool,
    companions: Companions = ALONE,
    adapters: int = 0,
) -> float:
    """FLOPs of one step's forward and backward passes on all ranks.

    A product of a token with a matrix of P parameters takes 2P forward and 4P backward, and 2P more where
    the forward pass is recomputed. A query attends to ``context`` keys at 4 * width * context FLOPs forward,
    the mean over a completion being its prompt and half of itself. The LM head sees trained tokens only and
    is taken to be recomputed, as it is but for the last chunk of each micro-batch. A critic takes what a
    policy takes, a reference its forward pass. Weights that LoRA freezes have no gradient, which saves 2P;
    ``adapters`` are the parameters that it trains instead.
    """
    passes = 4 if recomputes else 3
    products = 2 * model.layers * model.layer_matrices * work.forwarded
    attention = 0.0
    for calls in work.trained:
        in_completions = calls.decoded * (calls.prompt + calls.completion / 2)
        in_prompts = (calls.forwarded - calls.decoded) * calls.prompt / 2
        attention += 4 * passes * model.layers * model.query * (in_completions + in_prompts)
    head = 2 * model.embedding * work.trained_tokens
    whole = passes * products + attention + 4 * head
    own = whole
    if adapters:
        own += 2 * passes * adapters * work.forwarded - products - head
    return own + whole * (companions.critic + companions.reference / passes)


def longest_row(work: Workload) -> int:
    """Tokens of the longest sequence that is trained."""
    return max(calls.longest_prompt for calls in work.trained) + work.call_limit


def largest_micro_batches(config: JobConfig, work: Workload) -> list[MicroBatchSize]:
    """For each kind of trained call the micro-batch that needs the most memory.

    ``train.tokens_per_micro_batch`` bounds the padded tokens, but a row that is longer gets a micro-batch of
    its own; a group that shares its prompt is one row as long as the bound allows.
    """
    bound = config.train.tokens_per_micro_batch
    return [_largest(calls, work.call_limit, bound) for calls in work.trained]


def _largest(calls: Calls, limit: int, bound: int) -> MicroBatchSize:
    prompt, single = calls.longest_prompt, calls.longest_prompt + limit
    if not calls.shares_prompt:
        return MicroBatchSize(tokens=max(bound, single))
    length = max(single, min(bound, prompt + calls.per_context * limit))
    together = min(calls.per_context, max(1, (length - prompt) // calls.completion))
    return MicroBatchSize(tokens=max(bound, length), repeated=prompt * together)
