"""What one training step asks for: the calls that are sampled, the tokens and FLOPs that are trained.

Lengths are means, from the assumptions in ``PlanConfig``; limits are the run's own options.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from configs.schema import SHARE_FROM, JobConfig
from launch.plan.architecture import Architecture
from launch.plan.memory import ALONE, Companions, MicroBatch


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


def workload_of(config: JobConfig) -> Workload:
    """The calls of one step of a run."""
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
    if operators:
        calls += _operator_calls(config, operators, completion)
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
    depth = (2 if config.operator.distiller == "global_summary" else 1) * (len(config.operator.schedule) - 1)
    return Workload(
        calls=tuple(calls),
        rounds=1 + depth if operators else 1,
        call_limit=config.rollout.call_tokens,
    )


def _operator_calls(config: JobConfig, problems: int, completion: int) -> Iterable[Calls]:
    """Drafts, what distils them, and the group of refinements."""
    plan, operator = config.plan, config.operator
    question, longest = plan.mean_question_tokens, plan.max_question_tokens
    solution = max(1, round(plan.solution_share * _solution_limit(config)))
    kappa, group = operator.workspace_tokens, config.algo.num_generations
    widths = (*operator.schedule[:-1], group)
    held = 0
    for round_, width in enumerate(widths):
        is_last = round_ == len(widths) - 1
        num_workspaces = _num_workspaces(config, round_, width, is_last=is_last)
        on_the_way = "draft" in config.algo.credit and (round_ == 0 or config.algo.credit_rounds == "all")
        yield Calls(
            role="refine" if round_ else "draft",
            contexts=problems * num_workspaces,
            per_context=width // num_workspaces,
            prompt=question + held,
            completion=completion,
            longest_prompt=longest + (kappa if round_ else 0),
            trained=is_last or on_the_way,
        )
        if is_last:
            return
        reads_last = round_ == len(widths) - 2
        num_read = _num_workspaces(config, round_ + 1, widths[round_ + 1], is_last=reads_last)
        if operator.distiller == "global_summary":
            drafts = question + width * solution
            most = longest + width * _solution_limit(config)
            yield Calls(
                role="distil",
                contexts=problems,
                per_context=num_read,
                prompt=drafts,
                completion=completion,
                longest_prompt=most,
                trained=reads_last and "distil" in config.algo.credit,
            )
            held = min(kappa, solution)
            continue
        kept = width if operator.distiller == "all" else min(width, operator.top_k)
        held = min(kappa, kept * solution)
        if operator.distiller in ("shared_topk", "per_sample_topk") and width > operator.top_k:
            yield Calls(
                role="verify",
                contexts=problems * width * num_read,
                per_context=1,
                prompt=question + solution,
                completion=completion,
                longest_prompt=longest + _solution_limit(config),
            )


def _num_workspaces(config: JobConfig, round_: int, width: int, *, is_last: bool) -> int:
    """Different contexts of a round's calls on one problem."""
    if round_ == 0:
        return 1
    if is_last:
        return config.algo.num_workspaces
    return 1 if config.operator.distiller in ("shared_topk", "global_summary", "all") else width


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


def largest_micro_batches(config: JobConfig, work: Workload) -> list[MicroBatch]:
    """For each kind of trained call the micro-batch that needs the most memory.

    ``train.tokens_per_micro_batch`` bounds the padded tokens, but a row that is longer gets a micro-batch of
    its own; a group that shares its prompt is one row as long as the bound allows.
    """
    bound = config.train.tokens_per_micro_batch
    return [_largest(calls, work.call_limit, bound) for calls in work.trained]


def _largest(calls: Calls, limit: int, bound: int) -> MicroBatch:
    prompt, single = calls.longest_prompt, calls.longest_prompt + limit
    if not calls.shares_prompt:
        return MicroBatch(tokens=max(bound, single))
    length = max(single, min(bound, prompt + calls.per_context * limit))
    together = min(calls.per_context, max(1, (length - prompt) // calls.completion))
    return MicroBatch(tokens=max(bound, length), repeated=prompt * together)
