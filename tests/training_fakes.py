"""Synthetic groups and the outside world of a trainer, for unit tests and launched ranks."""

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from configs.schema import (
    AlgoConfig,
    CollectConfig,
    DataConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
    TrainingConfig,
)
from configs.stopping import StopRequest
from rollout.collection.collector import CollectedBatch
from rollout.groups import Group, GroupKey, Sample
from rollout.records import REFINE, TRACE, Call, Usage, VersionSpan, context_key
from train.collaborators import Collaborators
from train.engine_links import WeightsFolder
from train.loop import Trainer
from train.model.weights import PolicyWeights
from train.report import Reporter
from train.start import decide_start
from train.trace import GroupTrace

VOCAB = 261
"""Of the policy that conftest.py makes."""


def make_group(
    rng: random.Random, *, role: str, prompt: int, lengths: list[int], forced: bool = False, name: str = "p"
) -> Group:
    """Samples of random tokens; about half of them are right. ``forced`` masks every fourth token."""
    prompt_ids = tuple(rng.randrange(3, VOCAB) for _ in range(prompt))
    samples = []
    for place, length in enumerate(lengths):
        right = rng.random() < 0.5
        call = Call(
            role=role,
            round=int(role == REFINE),
            parents=(),
            prompt_ids=prompt_ids,
            completion_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)),
            sampler_logprobs=tuple(-rng.uniform(5.0, 6.2) for _ in range(length)),
            train_mask=tuple(not (forced and token % 4 == 3) for token in range(length)),
            versions=(VersionSpan(version=0, start=0, end=length),),
            finish="stop",
            text="",
            label="ok",
            usage=Usage(prompt_tokens=prompt, completion_tokens=length),
            seconds=0.0,
        )
        status = "correct" if right else "wrong"
        samples.append(
            Sample(
                call_id=f"{name}.{place}",
                call=call,
                reward=1.0 if right else -1.0,
                is_correct=right,
                status=status,
                reward_parts={"outcome": 1.0 if right else -1.0},
            )
        )
    key = GroupKey(problem_id=name, role=role, round=int(role == REFINE), context=context_key(prompt_ids))
    return Group(key=key, prompt_ids=prompt_ids, samples=tuple(samples))


def make_groups(seed: int, longest: int = 16) -> tuple[Group, ...]:
    """A ragged batch: short traces, refinements under long prompts, groups of unequal size."""
    rng = random.Random(seed)
    traces = [
        make_group(rng, role=TRACE, prompt=rng.randint(3, 9), lengths=_lengths(rng, longest), name=f"t{i}")
        for i in range(4)
    ]
    refinements = [
        make_group(
            rng,
            role=REFINE,
            prompt=rng.randint(20, 60),
            lengths=_lengths(rng, longest),
            forced=True,
            name=f"r{i}",
        )
        for i in range(3)
    ]
    return (*traces, *refinements)


def _lengths(rng: random.Random, longest: int) -> list[int]:
    return [rng.randint(1, longest) for _ in range(rng.randint(3, 6))]


class SyntheticCollector:
    """Groups that depend on the data position alone, which is all there is to resume."""

    def __init__(
        self,
        *,
        kill_at: int | None = None,
        poison: bool = False,
        delay_seconds: float = 0.0,
        empty: bool = False,
        short_at: list[int] | None = None,
    ) -> None:
        """``short_at`` holds the versions of the policy that answer in a token or two."""
        self.position = 0
        self.forgotten = 0
        self._delay_seconds = delay_seconds
        self._kill_at = kill_at
        self._poison = poison
        self._empty = empty
        self._short_at = short_at or []

    def next(self, step: int, version: int) -> CollectedBatch:
        if step == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._delay_seconds)
        self.position += 1
        groups = () if self._empty else make_groups(self.position, 2 if version in self._short_at else 16)
        if self._poison:
            groups = tuple(_poisoned(group) for group in groups)
        return CollectedBatch(groups=groups, rollouts=(), metrics={"position": float(self.position)})

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def resume(self, after_step: int, state: Mapping[str, Any] | None) -> list[int]:
        if state is not None:
            self.position = state["position"]
        return []

    def rewind(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]

    def forget(self, until_step: int) -> None:
        self.forgotten = until_step


def _poisoned(group: Group) -> Group:
    """The same group with sampler log-probs under which every ratio is infinite."""
    samples = tuple(
        replace(
            sample,
            call=replace(sample.call, sampler_logprobs=(float("-inf"),) * len(sample.call.completion_ids)),
        )
        for sample in group.samples
    )
    return replace(group, samples=samples)


class RecordingPublisher:
    """Keeps what a worker would have been told, and checks that it could load it."""

    def __init__(self, output_dir: Path) -> None:
        self.versions: list[int] = []
        self.events: list[str] = []
        self.changes = 0
        """How often it was told that the weights change."""
        self._folder = WeightsFolder(output_dir)

    def weights_will_change(self) -> None:
        self.changes += 1

    def sleep(self) -> None:
        self.events.append("sleep")

    def publish(self, weights: PolicyWeights, version: int) -> None:
        host = weights.to_host()
        directory = self._folder.write(host, version)
        assert (directory / ("adapter_config.json" if host.adapter_of else "config.json")).is_file()
        assert list(directory.glob("*.safetensors"))
        self.versions.append(version)
        self.events.append("publish")
        self._folder.keep_only(directory)


class CountingEvaluator:
    """Remembers at which steps it was asked."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def start(self, after_step: int) -> None:
        self.steps = [step for step in self.steps if step <= after_step]

    def evaluate(self, step: int) -> dict[str, float]:
        self.steps.append(step)
        return {"eval/steps_asked": float(len(self.steps))}


def make_config(output_dir: Path, model: Path, /, **changes: Any) -> TrainingConfig:
    """A small float32 run; ``changes`` may be ``algo``, ``train``, ``resume``, ``model``, ``rollout``,
    ``collect``."""
    algo = {"learning_rate": 1e-3, "epsilon_high": 5.0, "max_grad_norm": 1e9, **changes.get("algo", {})}
    train = {"max_steps": 3, "save_steps": 1, "keep_last": 3, "tokens_per_micro_batch": 160}
    return TrainingConfig(
        output_dir=str(output_dir),
        resume=changes.get("resume", "none"),
        model=ModelConfig(path=str(model), **{"dtype": "float32", **changes.get("model", {})}),
        data=DataConfig(path="unused.jsonl"),
        algo=AlgoConfig(**algo),
        collect=CollectConfig(**changes.get("collect", {})),
        rollout=RolloutConfig(**changes.get("rollout", {})),
        train=TrainConfig(**{**train, **changes.get("train", {})}),
    )


def make_collaborators(
    config: TrainingConfig, accelerator: Accelerator, **collector: Any
) -> Collaborators | None:
    """A synthetic outside world on rank 0."""
    if not accelerator.is_main_process:
        return None
    return Collaborators(
        collector=SyntheticCollector(**collector),
        publisher=RecordingPublisher(Path(config.output_dir)),
        evaluator=CountingEvaluator(),
        reporter=Reporter(config),
        trace=GroupTrace(Path(config.output_dir), limit_mib=config.train.trace_limit_mib, decode=str),
        origin={"model": {}, "problems": "", "checkpoints": []},
    )


def make_trainer(
    config: TrainingConfig, accelerator: Accelerator, *, stop: StopRequest | None = None, **collector: Any
) -> Trainer:
    """One rank of a run in a synthetic world."""
    start = decide_start(config, is_main=accelerator.is_main_process)
    outside = make_collaborators(config, accelerator, **collector)
    return Trainer(config, accelerator, outside, stop or StopRequest(), start.checkpoint)


def first_moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Adam's first moments in full, by model and parameter; after one step 0.1 times the gradient."""
    from deepspeed.utils import safe_get_full_optimizer_state

    learner, result = trainer.learner, {}
    for trained in (learner.policy, learner.critic):
        if trained is None:
            continue
        zero = trained._optimizer.optimizer
        if hasattr(zero, "_hp_optimizer_states_linked"):
            # DeepSpeed 0.19's ZeRO-2 links moments for reading when the first parameter group has stepped,
            # and so misses those of later groups.
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in trained.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if trainer.accelerator.distributed_type == "DEEPSPEED":
                name = name.removeprefix("module.")
                moment = safe_get_full_optimizer_state(parameter, "exp_avg")
            else:
                moment = trained._optimizer.state[parameter]["exp_avg"]
            owner = "policy" if trained is learner.policy else "critic"
            result[f"{owner}.{name}"] = moment.detach().clone().cpu()
    return result


def read_metric(output_dir: Path, name: str = "loss") -> dict[int, float]:
    """A metric by step, where it was logged."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line[name] for line in map(json.loads, lines) if name in line}
