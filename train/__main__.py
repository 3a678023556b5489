"""``python -m train``, under ``accelerate launch``: compose, check, build, run."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from transformers import set_seed

import configs
import rewards.verdict
from configs.compose import load_operator, run
from configs.exit_status import PREEMPTED
from configs.schema import WITHOUT_EFFECT, ModelConfig, TrainingConfig
from rewards.build import build_scorer, build_shaper
from rewards.gold import check_gold
from rewards.grader import Grader
from rewards.shaping import RewardInput, ShapedReward, Shaper
from rollout.build import Ranges, build_operator, load_tokenizer, policy_settings
from rollout.collection.collector import CollectedBatch, CollectOptions, Collector
from rollout.collection.draft_cache import DraftCache
from rollout.collection.groups import Credited, GroupFilter, RewardGroup
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.producer import Producer
from rollout.collection.replay import Replay
from rollout.endpoints.pool import PoolCounts
from rollout.engine import RolloutEngine
from rollout.output_lock import locked
from rollout.problems import load_eval, load_train
from rollout.prompts import Codec
from rollout.records import Call, Verdict
from rollout.workers.fleet import emulates
from train.distributed import leave, make_accelerator
from train.engine_links import EnginePublisher
from train.evaluation import AFTER, HeldOutEvaluator, phase_path, write_run_report
from train.loop import Collaborators, Trainer, is_finished
from train.preemption import StopRequest
from train.report import Reporter

logger = logging.getLogger(__name__)

FAILURES = (ValueError, FileNotFoundError, RuntimeError)
"""What a run may end with before it began, told in one line."""
STATE_SECONDS = 60.0
"""The longest that the engine's loop may take to say where the collector stands."""
CLOSE_SECONDS = 30.0
"""The longest that collecting may take to end."""


def main(config: TrainingConfig, overrides: list[str]) -> None:
    """One rank of a run; rank 0 also owns workers, data, scorer and reports."""
    is_main = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as stack:
        try:
            if _is_done(config):
                if is_main:
                    print(f"{config.output_dir} is finished: step {config.train.max_steps} was reached.")
                    print(write_run_report(config))
                return
            load_tokenizer(config.model)  # on every rank, so that none waits for one that ended
            set_seed(config.seed)
            if is_main:
                warn_of_slow_dtype(config.model)
            outside = _outside(config, overrides, stack) if is_main else None
            # A worker on a GPU measures the memory that is free while it starts: no rank may take any then.
            opens_first = torch.cuda.is_available()
            if outside and opens_first:
                outside.open(stack)
        except FAILURES as error:
            _give_up(error, is_main=is_main)
        accelerator = make_accelerator(config)
        collaborators = outside.collaborators if outside else None
        trainer = Trainer(config, accelerator, collaborators, StopRequest().listen())
        try:
            if outside and not opens_first:
                outside.open(stack)  # the workers have been starting meanwhile
        except FAILURES as error:
            _give_up(error, is_main=is_main)
        came_to_end = trainer.run()
    if not came_to_end:
        leave(PREEMPTED)
    if is_main:
        print(write_run_report(config))


def _give_up(error: Exception, *, is_main: bool) -> NoReturn:
    # The launcher's own report ends with what is recorded here; without it, it names no cause.
    get_error_handler().record_exception(error)
    sys.exit(f"train: {error}" if is_main else 1)


def _is_done(config: TrainingConfig) -> bool:
    """Whether the last step and the evaluation after it were made."""
    evaluated = phase_path(config, AFTER).exists() or not config.train.eval_at_end
    return is_finished(config) and evaluated


def warn_of_slow_dtype(model: ModelConfig) -> None:
    """Says that an update will be slow, if it will be."""
    if not torch.cuda.is_available() and emulates(model.dtype, Path(model.path)):
        logger.warning(
            "This CPU (%s) has no bfloat16 arithmetic: an update with model.dtype=bfloat16 may take up to 40 "
            "times as long. Set model.dtype=float32.",
            torch.backends.cpu.get_cpu_capability(),
        )


def _outside(config: TrainingConfig, overrides: list[str], stack: ExitStack) -> "Outside":
    """Rank 0's links to the outside; ``stack`` takes them down. What takes long to start is started first."""
    output_dir = Path(config.output_dir)
    stack.enter_context(locked(output_dir))
    engine = RolloutEngine(config.rollout, config.model.path, output_dir / "logs")
    stack.enter_context(engine.begun())
    problems = load_train(config.data, check_gold)
    held_out = load_eval(config.data, check_gold)
    cache = DraftCache(Path(config.collect.draft_cache)) if config.collect.draft_cache else None
    tokenizer = load_tokenizer(config.model)
    _write_run_card(config, overrides, output_dir)
    thinking = config.operator.thinking
    opened = Codec(tokenizer=tokenizer).opens_thinking(thinking.open)
    scorer = stack.enter_context(build_scorer(config.rewards, thinking, prompt_opens_thinking=opened))
    settings = policy_settings(config.operator, config.rollout, engine.pool, tokenizer)
    grader = Grader(scorer)
    collector = Collector(
        ProblemStream(
            problems,
            seed=config.seed,
            max_pass_rate=config.collect.max_history_pass_rate,
            min_attempts=config.algo.num_generations,
        ),
        build_operator(config.operator),
        build_operator(load_operator("trace", config.operator)),
        settings,
        grader,
        reward_group(
            build_shaper(config.rewards, thinking, prompt_opens_thinking=opened), config.rollout.call_tokens
        ),
        collect_options(config),
        keep=GroupFilter(
            drop_equal_rewards=config.collect.drop_equal_rewards,
            max_pass_rate=config.collect.max_pass_rate,
            draft_accuracy=(config.collect.draft_accuracy[0], config.collect.draft_accuracy[1]),
        ),
        cache=cache,
        replay=_replay(config),
    )
    operators = [build_operator(load_operator(n, config.operator)) for n in config.train.eval_operators]
    producer = Producer(
        collector, max_staleness=config.collect.max_staleness, last_step=config.train.max_steps
    )
    engine_collector = EngineCollector(engine, producer, config.train.collective_timeout_seconds)
    return Outside(
        engine=engine,
        collector=engine_collector,
        collaborators=Collaborators(
            collector=engine_collector,
            publisher=EnginePublisher(engine, config),
            evaluator=HeldOutEvaluator(config, held_out, operators, engine, settings, grader),
            reporter=Reporter(config),
        ),
    )


def _replay(config: TrainingConfig) -> Replay:
    """Rollouts of this run from before, unless something that they depend on has changed."""
    said = {
        key: value for key, value in asdict(config).items() if key not in ("resume", "output_dir", "train")
    }
    said["rollout"] = {k: v for k, v in said["rollout"].items() if k not in WITHOUT_EFFECT}
    settings = json.dumps(said, sort_keys=True, indent=1)
    replay = Replay(Path(config.output_dir) / "collected", settings, rewards.verdict.Verdict)
    if config.resume == "none":
        replay.clear()
    return replay


def collect_options(config: TrainingConfig) -> CollectOptions:
    """What a step asks for, out of the config's groups."""
    algo, operator = config.algo, config.operator
    return CollectOptions(
        problems_per_step=algo.problems_per_step,
        operator_fraction=algo.operator_fraction,
        num_generations=algo.num_generations,
        seed=config.seed,
        num_workspaces=algo.num_workspaces,
        max_refill=config.collect.max_refill,
        reuse_traces=config.collect.draft_source == "reuse",
        ranges=Ranges(
            drafts=tuple(operator.drafts),
            top_k=tuple(operator.top_k_range),
            distillers=tuple(operator.distillers),
        ),
        credited=Credited(
            distil="distil" in algo.credit,
            drafts="draft" in algo.credit,
            intermediate=algo.credit_rounds == "all",
            contribution=algo.draft_credit == "contribution",
        ),
    )


def reward_group(shaper: Shaper, max_tokens: int) -> RewardGroup:
    """The shaper, as the collector calls it: once for the calls of one context."""

    def reward(
        calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[str]
    ) -> list[ShapedReward]:
        inputs = [
            RewardInput(
                verdict=cast("rewards.verdict.Verdict", verdict),
                completion=call.text,
                num_tokens=len(call.completion_ids),
                max_tokens=max_tokens,
                drafts=tuple(drafts),
                role=call.role,
            )
            for call, verdict in zip(calls, verdicts, strict=True)
        ]
        return shaper(inputs)

    return reward


@dataclass(slots=True)
class EngineCollector:
    """The producer on the engine's loop, for the trainer's thread."""

    engine: RolloutEngine
    producer: Producer
    timeout_seconds: float
    _seen: PoolCounts = field(default_factory=PoolCounts)
    """When the batch before was handed over."""

    def next(self, step: int, version: int) -> CollectedBatch:
        batch = self.engine.run(self.producer.next(step, version), self.timeout_seconds)
        before, self._seen = self._seen, replace(self.engine.pool.counts)
        read = self._seen.prompt_tokens - before.prompt_tokens
        cached = self._seen.cached_tokens - before.cached_tokens
        if not read:  # all of it was finished before a resume
            return batch
        return replace(batch, metrics={**batch.metrics, "workers/cached_share": cached / read})

    def state_dict(self) -> dict[str, Any]:
        async def state() -> dict[str, Any]:
            return self.producer.state_dict()

        return self.engine.run(state(), STATE_SECONDS)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.producer.load_state_dict(state)

    def start(self, after_step: int) -> list[int]:
        return self.producer.start(after_step)

    def forget(self, until_step: int) -> None:
        async def forget() -> None:
            self.producer.forget(until_step)

        self.engine.run(forget(), STATE_SECONDS)

    def close(self) -> None:
        self.engine.run(self.producer.close(), CLOSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Outside:
    """Rank 0's links to the outside, not open yet."""

    engine: RolloutEngine
    collector: EngineCollector
    collaborators: Collaborators

    def open(self, stack: ExitStack) -> None:
        """Waits for the workers. Raises as the engine does."""
        stack.enter_context(self.engine)
        stack.callback(self.collector.close)


def _write_run_card(config: TrainingConfig, overrides: list[str], output_dir: Path) -> None:
    """config.yaml, overrides.txt and versions.txt: what this run was."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    (output_dir / "overrides.txt").write_text("\n".join(overrides) + "\n")
    names = ("pdr-rl", "torch", "transformers", "trl", "deepspeed", "accelerate", "hydra-core", "math-verify")
    lines = [f"python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in names)]
    lines.append(f"configs {Path(configs.__file__).parent}")
    (output_dir / "versions.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run("training", main)
    leave()
