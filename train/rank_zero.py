"""Rank 0's side of a run: data, verifier and workers, and the collaborators that use them.

``assemble`` builds all of it from a config and the run's data, and starts the workers first because they take
longest. The trainer sees only ``train.collaborators.Collaborators``.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import yaml

import configs
import rewards.verdict
from configs.compose import load_operator
from configs.schema import WITHOUT_EFFECT, TrainingConfig, check_draft_url
from rewards.build import build_scorer, build_shaper
from rewards.grader import Grader
from rewards.shaping import RewardInput, ShapedReward, Shaper
from rollout.build import Ranges, build_operator, policy_settings
from rollout.codec import Codec
from rollout.collection.amortise import Amortiser
from rollout.collection.collector import BatchCollector, CollectOptions
from rollout.collection.draft_cache import DraftCache
from rollout.collection.filters import group_filter
from rollout.collection.groups import Credited, RewardGroup
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.producer import Producer
from rollout.collection.replay import Replay
from rollout.endpoints.teacher_api import TeacherEndpoint
from rollout.engine import RolloutEngine
from rollout.grading import JudgedDraft
from rollout.output_lock import locked
from rollout.page.provenance import provenance
from rollout.problems.reading import column_names
from rollout.records import Call
from rollout.tokenizer import load_codec
from rollout.verdicts import Verdict
from train.collaborators import Collaborators
from train.engine_links import EngineCollector, EnginePublisher
from train.evaluation import HeldOutEvaluator
from train.first_tries import try_first
from train.origin import Origin, RunData
from train.report import Reporter
from train.trace import GroupTrace

logger = logging.getLogger(__name__)

TEACHER_SECONDS = 10.0
"""Time limit for opening or closing the connections of the teacher."""


@dataclass(frozen=True, slots=True)
class RankZero:
    """The assembled parts of rank 0. Workers may still be starting until ``open`` returns."""

    engine: RolloutEngine
    collector: EngineCollector
    collaborators: Collaborators
    codec: Codec
    teacher: TeacherEndpoint | None = None
    """Another model that scores the samples."""

    def open(self, stack: ExitStack) -> None:
        """Waits for the workers; ``stack`` closes them.

        Raises as entering ``RolloutEngine`` does, and as ``TeacherEndpoint.check`` does.
        """
        run, teacher = stack.enter_context(self.engine).run, self.teacher
        if teacher is not None:
            opening, closing = "opening the teacher's connections", "closing the teacher's connections"
            run(teacher.__aenter__(), TEACHER_SECONDS, what=opening)
            stack.callback(lambda: run(teacher.__aexit__(), TEACHER_SECONDS, what=closing))
            # Its requests have limits of their own.
            run(teacher.check(self.codec.tokenizer), None, what="asking the teacher")
        stack.callback(self.collector.close)


def assemble(config: TrainingConfig, overrides: list[str], data: RunData, stack: ExitStack) -> RankZero:
    """Starts the workers without waiting for them, and builds rank 0's side; ``stack`` closes everything.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: If verifier, workers or ``output_dir`` fail.
    """
    output_dir = Path(config.output_dir)
    try_first(config)
    warn_if_quantized(config)
    stack.enter_context(locked(output_dir))
    engine = RolloutEngine(config.rollout, config.model.path, output_dir / "logs")
    stack.enter_context(engine.begun())
    cached = config.collect.draft_cache
    cache = DraftCache(Path(cached), data.problems) if cached else None
    codec = load_codec(config.model, config.rollout, config.operator.prompts)
    _write_run_card(config, overrides, output_dir)
    thinking = config.operator.thinking
    opened = codec.opens_thinking(thinking.open)
    scorer = stack.enter_context(build_scorer(config.rewards, thinking, prompt_opens_thinking=opened))
    scorer.check_columns(column_names(data.problems))
    settings = policy_settings(config.operator, config.rollout, engine.pool, codec, engine.drafts)
    grader = Grader(scorer)
    teacher = TeacherEndpoint(config.rollout) if config.rollout.teacher_model_server_url else None
    collector = BatchCollector(
        ProblemStream(
            data.problems,
            seed=config.seed,
            max_pass_rate=config.collect.max_history_pass_rate,
            min_attempts=config.algo.num_generations,
            by_learnability=config.collect.curriculum == "learnability",
        ),
        build_operator(config.operator),
        build_operator(load_operator("trace", config.operator)),
        settings,
        grader,
        reward_group(
            build_shaper(config.rewards, thinking, prompt_opens_thinking=opened),
            config.rollout.call_tokens_of,
        ),
        collect_options(config),
        keep=group_filter(config.collect),
        cache=cache,
        replay=_replay(config, data.origin),
        amortise=(
            Amortiser(settings, config.algo.amortise_max_per_problem) if config.algo.amortise_coef else None
        ),
        teacher=teacher,
    )
    evaluated = [load_operator(name, config.operator) for name in config.train.eval_operators]
    for each in evaluated:
        check_draft_url(each, config.rollout)
    operators = [build_operator(each) for each in evaluated]
    producer = Producer(
        collector, max_staleness=config.collect.max_staleness, last_step=config.train.max_steps
    )
    engine_collector = EngineCollector(engine, producer, config.train.collective_timeout_seconds)
    return RankZero(
        engine=engine,
        collector=engine_collector,
        codec=codec,
        teacher=teacher,
        collaborators=Collaborators(
            collector=engine_collector,
            publisher=EnginePublisher(engine, config),
            evaluator=HeldOutEvaluator(
                config, data.held_out, operators, engine, settings, grader, data.of_phase
            ),
            reporter=Reporter(config),
            trace=GroupTrace(output_dir, limit_mib=config.train.trace_limit_mib, decode=codec.decode),
            origin=asdict(data.origin),
        ),
    )


def warn_if_quantized(config: TrainingConfig) -> None:
    """Warns if workers sample with rounded weights or caches and nothing corrects for it."""
    args = config.rollout.vllm_args
    quantization, cache = args.get("quantization"), str(args.get("kv_cache_dtype", "auto"))
    rounded = [f"quantization={quantization}"] if quantization else []
    rounded += [f"kv_cache_dtype={cache}"] if cache not in ("auto", "bfloat16") else []
    if rounded and not config.algo.vllm_importance_sampling_correction:
        logger.warning(
            "rollout.vllm_args has %s: samples are those of another policy than the one that is trained. Set "
            "algo.vllm_importance_sampling_correction=true with "
            "algo.vllm_importance_sampling_mode=token_truncate, as rollout=fp8 does.",
            " and ".join(rounded),
        )


def _replay(config: TrainingConfig, origin: Origin) -> Replay:
    """Returns this run's earlier rollouts; none if a setting, the model or the problems have changed."""
    said = {
        key: value for key, value in asdict(config).items() if key not in ("resume", "output_dir", "train")
    }
    said["rollout"] = {k: v for k, v in said["rollout"].items() if k not in WITHOUT_EFFECT}
    # Content, not names: a folder or file may have been replaced.
    said["origin"] = asdict(origin) | {"problems": hashlib.blake2b(origin.problems.encode()).hexdigest()}
    settings = json.dumps(said, sort_keys=True, indent=1)
    replay = Replay(Path(config.output_dir) / "collected", settings, rewards.verdict.Verdict)
    if config.resume == "none":
        replay.clear()
    return replay


def collect_options(config: TrainingConfig) -> CollectOptions:
    """Returns the options of the collector, which come from several groups of the config."""
    algo, operator = config.algo, config.operator
    return CollectOptions(
        problems_per_step=algo.problems_per_step,
        operator_fraction=algo.operator_fraction,
        num_generations=algo.num_generations,
        seed=config.seed,
        num_workspaces=algo.num_workspaces,
        middle_readers=algo.middle_readers,
        max_refill=config.collect.max_refill,
        max_refused_share=config.collect.max_refused_share,
        reuse_traces=config.collect.draft_source == "reuse",
        reference_drafts=config.collect.draft_source == "reference",
        teaches=algo.opd_coef > 0 and not config.rollout.teacher_model_server_url,
        majority_wrong_share=(
            config.collect.balance_share if config.collect.balance == "majority_wrong" else 0.0
        ),
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


def reward_group(shaper: Shaper, max_tokens: Callable[[str], int]) -> RewardGroup:
    """Adapts the shaper to the collector, which calls it once per group of calls on one context.

    ``max_tokens`` returns the limit of a role's calls.
    """

    def reward(
        calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[JudgedDraft]
    ) -> list[ShapedReward]:
        inputs = [
            RewardInput(
                verdict=cast("rewards.verdict.Verdict", verdict),
                completion=call.text,
                num_tokens=len(call.completion_ids),
                max_tokens=max_tokens(call.role),
                drafts=tuple(draft.text for draft in drafts),
                draft_statuses=tuple(draft.verdict.status for draft in drafts),
                role=call.role,
            )
            for call, verdict in zip(calls, verdicts, strict=True)
        ]
        return shaper(inputs)

    return reward


def _write_run_card(config: TrainingConfig, overrides: list[str], output_dir: Path) -> None:
    """Writes ``config.yaml``, ``overrides.txt`` and ``versions.txt``, which document the run."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    (output_dir / "overrides.txt").write_text("\n".join(overrides) + "\n")
    names = ("pdr-rl", "torch", "transformers", "trl", "deepspeed", "accelerate", "hydra-core", "math-verify")
    lines = [f"python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in names)]
    lines += [f"configs {Path(configs.__file__).parent}", *provenance()]
    (output_dir / "versions.txt").write_text("\n".join(lines) + "\n")
