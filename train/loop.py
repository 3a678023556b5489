"""The loop: collect, credit, update, trace, publish, evaluate, report, checkpoint. Entry: ``Trainer.run``.

The trainer does not know how samples were generated. It receives groups of samples with masks, rewards and
the log-probs of their sampler. Only rank 0 communicates with the outside (``Collaborators``)::

      rank 0, engine's thread              rank 0, trainer's thread                 other ranks
    ┌───────────────────────────┐  groups
    │ Producer                  ├────────► collector.next ─► credit ──── rows ────► from_rank_zero
    │   BatchCollector, up to   │               │                                        │
    │   max_staleness ahead     │               ▼                                        ▼
    │     operators ─► pool ────┼──┐       learner.learn ◄─── gradients, metrics ─► learner.learn
    └───────────────────────────┘  │            │                                        │
                                   ▼            ▼                                        ▼
      vLLM workers ◄──── weights ─ publisher.publish ◄──── shards (ZeRO-3) ──── PolicyWeights
                                                │                                        │
      groups/ ◄─ trace; evaluation/ ◄─ operators on held-out problems (train.eval_steps) │
      checkpoints/ ◄──────────────── state of rank 0 and shards ◄────────────────────────┘ (train.save_steps)

    who waits          for what                                  until
    trainer            the producer's batch of this step         it is collected, as are later ones meanwhile
    other ranks        rank 0's rows and decisions, and the      rank 0's own limits, or until a rank is gone
                       end of what it borrows (ZeRO-3)
    all ranks          one another, in every optimizer step      train.collective_timeout_seconds
    trainer            workers to serve the new version          rollout.publish_timeout_seconds
    a worker's calls   the publish: frozen (keep) or finished    it is done; a call may hold tokens of two
                       first (wait), by rollout.pause_mode       versions, and records which
    producer           the trainer, max_staleness steps ahead    the next call of ``next``
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from configs.run_folder import forget_end
from configs.schema import TrainingConfig
from configs.stopping import Stopped, StopRequest
from train.call_terms import CallTerms
from train.checkpoint import Checkpoints, config_fingerprint
from train.checkpoint_files import TrainerState
from train.collaborators import Collaborators
from train.credited_batch import Batch, credited
from train.deepspeed_zero import sharding_of
from train.distributed import any_rank, from_rank_zero, gather_objects
from train.health.response import AlarmWatch, UnhealthyRun
from train.health.rollbacks import forget_rollbacks, rate_scale, read_rollbacks
from train.learner import Learner
from train.memory import peak_gib
from train.metrics import Stopwatch
from train.nonfinite_steps import RefusalGuard
from train.preemption import leave_marker
from train.publishing import PolicyPublishing
from train.resumed import updates_ratio
from train.trace import UpdateRecord, credit_records

ROLLOUTS_SHOWN = 2
"""Number of rollouts written as text at each checkpoint."""


class Trainer:
    """One rank of a run."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        collaborators: Collaborators | None,
        stop: StopRequest,
        checkpoint: str | None = None,
    ) -> None:
        """Loads the model, but not yet its state in ``checkpoint``, the folder to resume from.

        ``collaborators`` must be given on rank 0 and be None on the other ranks.
        """
        assert (collaborators is not None) == accelerator.is_main_process
        disable_progress_bar()  # The run has a single progress bar, that of the reporter.
        self.config = config
        self.accelerator = accelerator
        self._sharding = sharding_of(accelerator)
        self.outside = collaborators
        self._watch = (
            AlarmWatch(config, collaborators.collector, collaborators.reporter) if collaborators else None
        )
        guard = RefusalGuard(
            Path(config.output_dir) / "debug", collaborators.reporter.note if collaborators else None
        )
        self.learner = Learner(config, accelerator, guard)
        self.model = self.learner.model
        publisher = collaborators.publisher if collaborators else None
        self._publishing = PolicyPublishing(config, accelerator, self.model, self._sharding, publisher)
        tokenizer = AutoTokenizer.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
        critic = self.learner.critic
        self.checkpoints = Checkpoints(
            config, accelerator, self.model, tokenizer, critic.model if critic else None
        )
        self._stop = stop
        self._checkpoint = Path(checkpoint) if checkpoint else None
        self.step = 0
        """Number of finished steps."""
        self.policy_version = 0

    def run(self) -> bool:
        """Trains until ``train.max_steps`` or a request to stop; returns True if it reached the end."""
        self._start()
        if self.step == 0 and self.config.train.eval_at_start:
            self._evaluate()
        if self._told_to_stop():
            return self._stop_early()
        if self.step == 0 and self.config.train.on_alarm == "rollback":
            self._checkpoint_if_due({}, now=True)  # otherwise an early alarm has nothing to return to
        while self.step < self.config.train.max_steps:
            clock = Stopwatch()
            with clock("collect"):
                batch = self._collect()
            with clock("update"):
                calls = CallTerms() if self._is_traced(self.step + 1) else None
                metrics = self.learner.learn(batch.rows, self.step + 1, calls)
            self.step += 1
            if calls is not None:
                with clock("trace"):
                    self._trace(batch, calls)
            with clock("publish"):
                self.policy_version += 1
                self._publishing.publish(self.policy_version)
            with clock("evaluate"):
                metrics |= self._evaluate_if_due()
            metrics["memory/peak_gib"] = peak_gib(self.accelerator)
            self._report(batch, metrics, clock)
            if self._respond_to_alarms():
                continue
            told_to_stop = self._told_to_stop()
            self._checkpoint_if_due(metrics, now=told_to_stop)
            if told_to_stop and (self.step < self.config.train.max_steps or self.config.train.eval_at_end):
                return self._stop_early()
        # After the last checkpoint, so that a run killed here resumes with the evaluation only.
        if self.config.train.eval_at_end and self._evaluate() is None:
            return self._stop_early()
        self._finish()
        return True

    def _start(self) -> None:
        path = self._checkpoint
        state = None if path is None else self._load(path)
        if self.outside:
            forget_end(Path(self.config.output_dir))
            if state is None:
                forget_rollbacks(Path(self.config.output_dir))
            self._start_outside()
            if state is not None:
                self.outside.reporter.note(f"Resumed from {path}, step {self.step}.")
            if kept := self.outside.collector.resume(self.step, state.collector if state else None):
                steps = f"{kept[0]} to {kept[-1]}" if len(kept) > 1 else str(kept[0])
                self.outside.reporter.note(f"Finished rollouts of step {steps} are not sampled again.")
        # The workers have started with the weights of model.path: not with those of the checkpoint, and
        # without an adapter, which their requests name from the first.
        if state is not None or self.config.rollout.max_lora_rank:
            self._publishing.publish(self.policy_version)
        if state is not None:
            self._evaluate_if_due()  # no-op unless a request to stop has interrupted it

    def _load(self, path: Path) -> TrainerState:
        self._publishing.weights_will_change()
        state = self.checkpoints.load(path)
        made = read_rollbacks(Path(self.config.output_dir)) if self.outside else None
        rollbacks = from_rank_zero(self.accelerator, made, what="the run's rollbacks")
        self.learner.restore_options(updates_ratio(path, self.config), rate_scale(rollbacks))
        self.step = state.step
        self.policy_version = max(state.policy_version, *(made.policy_version for made in rollbacks), 0)
        return state

    def _start_outside(self) -> None:
        """Drops what files and trackers hold of steps after ``self.step``."""
        if self.outside and self._watch:
            self.outside.reporter.start(self.step)
            self.outside.trace.start(self.step)
            self.outside.evaluator.start(self.step)
            self._watch.start()

    def _respond_to_alarms(self) -> bool:
        """Stops the run or rolls it back if ``train.on_alarm`` says so; returns True after a rollback.

        Raises:
            UnhealthyRun: If the run must stop, on every rank.
        """
        if self.config.train.on_alarm == "warn":
            return False
        response = from_rank_zero(
            self.accelerator,
            self._watch.respond(self.step, self.policy_version) if self._watch else None,
            what="the response to alarms",
        )
        if response.stop:
            self._finish()
            raise UnhealthyRun(response.stop)
        if response.checkpoint is None:
            return False
        self._load(response.checkpoint)
        self._start_outside()
        # The older weights, as a version that no sample of the steps given up has.
        self._publishing.publish(self.policy_version)
        return True

    def _collect(self) -> Batch:
        batch = collected = None
        if self.outside:
            collected = self.outside.collector.next(self.step + 1, self.policy_version)
            batch = credited(collected, self.config, self.policy_version)
            if (self.step + 1) % self.config.train.save_steps == 0 or self.step == 0:
                shown = collected.rollouts[:ROLLOUTS_SHOWN]
                credits = credit_records(collected, batch.rows, updates={})
                self.outside.reporter.write_rollouts(self.step + 1, shown, credits)
        self._publishing.weights_will_change()
        if self.outside and self.config.rollout.enable_sleep_mode:
            # Before the broadcast: no rank may start its update while workers hold GPU memory.
            self.outside.publisher.sleep()
        batch = from_rank_zero(self.accelerator, batch, what=f"the groups of step {self.step + 1}")
        # Added after the broadcast, which would otherwise send texts and token ids that no other rank uses.
        return replace(batch, collected=collected)

    def _is_traced(self, step: int) -> bool:
        every = self.config.train.trace_steps
        return every > 0 and step % every == 0

    def _trace(self, batch: Batch, calls: CallTerms) -> None:
        """Writes credit and loss contribution of each call of the finished step. Every rank must call it."""
        updates: dict[str, UpdateRecord] = {}
        for of_rank in gather_objects(self.accelerator, calls.result()):
            updates |= of_rank
        if self.outside and batch.collected:
            self.outside.trace.write(self.step, batch.collected, batch.rows, updates)

    def _evaluate_if_due(self) -> dict[str, float]:
        train = self.config.train
        due = train.eval_steps and self.step % train.eval_steps == 0 and self.step < train.max_steps
        return (self._evaluate() or {}) if due else {}

    def _evaluate(self) -> dict[str, float] | None:
        """Returns rank 0's metrics; None if a request to stop interrupts: a resumed run makes the rest."""
        if self.outside is None:
            return {}
        try:
            with self._stop.interrupting():
                return dict(self.outside.evaluator.evaluate(self.step))
        except Stopped:
            return None

    def _report(self, batch: Batch, metrics: dict[str, float], clock: Stopwatch) -> None:
        if self.outside and self._watch:
            written = batch.metrics.get("collect/tokens", 0.0)
            seconds = {"tokens_per_second": written / clock.total, **clock.result()}
            version = {"policy_version": float(self.policy_version)}
            logged = self._watch.observe(self.step, batch.metrics | metrics | seconds | version)
            self.outside.reporter.log(self.step, logged)

    def _told_to_stop(self) -> bool:
        """True if any rank received a signal to stop. Every rank must call it, as it is a collective."""
        told = any_rank(self.accelerator, bool(self._stop.name))
        if told and self.outside:
            which = self._stop.name or "a signal to another rank"
            self.outside.reporter.note(f"Told to stop ({which}) at step {self.step}.")
        return told

    def _checkpoint_if_due(self, metrics: Mapping[str, float], *, now: bool) -> None:
        train = self.config.train
        if self.step % train.save_steps and self.step != train.max_steps and not now:
            return
        collector = self.outside.collector.state_dict() if self.outside else {}
        self.checkpoints.save(
            TrainerState(
                step=self.step,
                policy_version=self.policy_version,
                world_size=self.accelerator.num_processes,
                zero_stage=self._sharding.stage,
                config_fingerprint=config_fingerprint(self.config),
                collector=collector,
                metric=metrics.get(train.keep_best),
                origin=self.outside.origin if self.outside else {},
            )
        )
        if self.outside:
            self.outside.collector.forget(self.step)
            self.outside.reporter.draw(self.step)

    def _stop_early(self) -> bool:
        self._finish()
        if self.outside:
            print(leave_marker(self.config.output_dir, self._stop.name, self.step), flush=True)
        return False

    def _finish(self) -> None:
        if self.outside:
            self.outside.reporter.draw(self.step)  # with the last evaluation
            self.outside.reporter.close()
        self._publishing.end()
        self.accelerator.end_training()
