"""Work of one training step: the calls that are sampled, the tokens and FLOPs that are trained.

Lengths are means, from the assumptions in ``PlanConfig``; limits are the options of the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from configs.schema import SHARE_FROM, JobConfig
from launch.plan.architecture import Architecture
from launch.plan.memory import Companions, MicroBatchSize
from launch.plan.opening import opening_of


class Stage(Protocol):
    """Calls that an operator makes at the same time on one problem. Passed in: plans import no operator."""

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
        """Number of solutions that a prompt holds in addition to the question."""
        ...

    @property
    def chains(self) -> int:
        """Number of completions that a prompt holds with their thoughts, in addition to the solutions."""
        ...

    @property
    def chain_tokens(self) -> int | None:
        """Tokens at the end of such a completion that are read; None: all."""
        ...

    @property
    def bound(self) -> int | None:
        """Limit of the tokens of all these solutions and chains together; None for no limit."""
        ...


CallsOf = Callable[[JobConfig], Sequence[Stage]]
"""Returns the stages of a run's operator, the answers last. Raises ValueError if they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls of one kind in one step."""

    role: str
    contexts: int
    """Number of different prompts; each is read once and kept in the worker's prefix cache."""
    per_context: int
    """Completions of each prompt."""
    prompt: int
    """Mean tokens of the prompt."""
    completion: int
    """Mean tokens of a completion."""
    longest_prompt: int
    trained: bool = False
    may_share: bool = True
    """True if ``train.packing`` lets completions share a prompt."""

    @property
    def number(self) -> int:
        """Total number of completions."""
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
        """True if the trainer runs a prompt once for all its completions."""
        if not self.may_share:
            return False
        # The rule of the trainer: a prompt is shared if that saves ``SHARE_FROM`` of the group's tokens.
        apart = self.per_context * (self.prompt + self.completion)
        return (self.per_context - 1) * self.prompt >= SHARE_FROM * apart

    @property
    def forwarded(self) -> int:
        """Tokens that go through the trainer's model."""
        prompts = self.contexts if self.shares_prompt else self.number
        return prompts * self.prompt + self.decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """All calls of one step."""

    calls: tuple[Calls, ...]
    rounds: int
    """Number of calls on the longest path, each of which waits for the one before."""
    call_limit: int
    """Limit of the tokens that one call may write."""

    @property
    def trained(self) -> tuple[Calls, ...]:
        """The calls in the loss."""
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
        """Total number of calls."""
        return sum(calls.number for calls in self.calls)

    @property
    def mean_completion(self) -> float:
        """Mean tokens of a completion over all calls."""
        return self.decoded / self.number

    @property
    def mean_context(self) -> float:
        """Tokens that a sequence holds in the KV cache, averaged over its decoding."""
        # On average half of the completion has been written.
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
    """Returns the models that a run needs in addition to its policy."""
    algo = config.algo
    return Companions(
        critic=algo.has_critic and algo.critic == "own_backbone",
        reference=algo.beta != 0 and not config.model.lora_r,
    )


def adapters_of(config: JobConfig, model: Architecture) -> int:
    """Returns the parameters of a run's LoRA adapters; 0 if every weight is trained."""
    return model.adapters(config.model.lora_r, config.model.lora_target_modules)


def workload_of(config: JobConfig, calls_of: CallsOf) -> Workload:
    """Returns the calls of one step of a run.

    Args:
        config: The run.
        calls_of: Returns the stages of its operator; called only if the step samples operators.

    Raises:
        ValueError: If the operator's calls are not known, or the examples cannot be read.
    """
    plan, algo = config.plan, config.algo
    completion = max(1, round(plan.completion_share * config.rollout.call_tokens))
    opening = opening_of(config.operator.prompts)
    operators = round(algo.operator_fraction * algo.problems_per_step)
    calls: list[Calls] = []
    if algo.problems_per_step > operators:
        calls.append(
            Calls(
                role="trace",
                contexts=algo.problems_per_step - operators,
                per_context=algo.num_generations,
                prompt=opening.of("trace", 0) + plan.mean_question_tokens,
                completion=completion,
                longest_prompt=opening.of("trace", 0) + plan.max_question_tokens,
                trained=True,
            )
        )
    stages = calls_of(config) if operators else ()
    # Traces of the same problems serve as drafts then.
    reused = [stage for stage in stages if stage.role == "draft" and stage.round == 0]
    sampled = [s for s in stages if config.collect.draft_source != "reuse" or s not in reused]
    calls += [_operator_calls(config, stages, stage, operators, completion) for stage in sampled]
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
    """Returns the calls of one of the operator's stages on all problems."""
    plan, limit = config.plan, _solution_limit(config)
    before = opening_of(config.operator.prompts).of(stage.role, stage.round)
    held, most = stage.solutions * max(1, round(plan.solution_share * limit)), stage.solutions * limit
    whole = stage.chain_tokens or config.rollout.call_tokens
    held, most = held + stage.chains * min(whole, completion), most + stage.chains * whole
    if stage.bound is not None:
        held, most = min(held, stage.bound), stage.bound
    return Calls(
        role=stage.role,
        contexts=problems * stage.contexts,
        per_context=stage.per_context,
        prompt=before + plan.mean_question_tokens + held,
        completion=completion,
        longest_prompt=before + plan.max_question_tokens + most,
        trained=_is_trained(config, stage, answers=stages[-1]),
    )


def _is_trained(config: JobConfig, stage: Stage, answers: Stage) -> bool:
    """Returns True for answers; for the calls that lead to them ``algo.credit`` decides."""
    algo = config.algo
    if stage is answers:
        return True
    if stage.role == "distil":
        return "distil" in algo.credit and stage.round == answers.round - 1
    on_the_way = stage.role in ("draft", "refine") and (stage.round == 0 or algo.credit_rounds == "all")
    return "draft" in algo.credit and on_the_way


def _solution_limit(config: JobConfig) -> int:
    """Returns the limit of the tokens of a solution."""
    rollout = config.rollout
    return rollout.answer_tokens if rollout.thinking_tokens else rollout.max_completion_length


def longest_row(work: Workload) -> int:
    """Returns the tokens of the longest sequence that is trained."""
    return max(calls.longest_prompt for calls in work.trained) + work.call_limit


def largest_micro_batches(config: JobConfig, work: Workload) -> list[MicroBatchSize]:
    """Returns, for each kind of trained call, the micro-batch that needs the most memory.

    ``train.tokens_per_micro_batch`` bounds the padded tokens, but a longer row gets a micro-batch of its own;
    a group that shares its prompt is one row, up to the bound.
    """
    bound = config.train.tokens_per_micro_batch
    return [_largest(calls, work.call_limit, bound) for calls in work.trained]


def _largest(calls: Calls, limit: int, bound: int) -> MicroBatchSize:
    prompt, single = calls.longest_prompt, calls.longest_prompt + limit
    if not calls.shares_prompt:
        return MicroBatchSize(tokens=max(bound, single))
    length = max(single, min(bound, prompt + calls.per_context * limit))
    # Shorter completions mean more of them in the row, and each repeats the keys of the prompt.
    together = min(calls.per_context, max(1, (length - prompt) // calls.completion))
    return MicroBatchSize(tokens=max(bound, length), repeated=prompt * together)
