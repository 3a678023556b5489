"""Held-out evaluation during training, and the run's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from configs.schema import TrainingConfig
from rollout.engine import RolloutEngine
from rollout.evaluate import Difference, Outcome, difference, evaluate, read_outcomes, rows
from rollout.journal import Journal
from rollout.operators import Operator
from rollout.policy import PolicySettings
from rollout.records import Grader, Problem, Rollout
from rollout.report import pairwise, write_report

BEFORE, AFTER = "before", "after"


class HeldOutEvaluator:
    """Runs operators on held-out problems with whatever policy the workers serve.

    Each phase keeps its rollouts in ``evaluation/<phase>/rollouts.jsonl``; a phase that is complete is
    not run again, one that was interrupted goes on.
    """

    def __init__(
        self,
        config: TrainingConfig,
        problems: Sequence[Problem],
        operators: Sequence[Operator],
        engine: RolloutEngine,
        settings: PolicySettings,
        grader: Grader,
    ) -> None:
        self._config = config
        self._problems = problems
        self._operators = operators
        self._engine = engine
        self._settings = settings
        self._grader = grader

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Accuracy of each operator as ``eval/<operator>``; rewrites the report."""
        phase = phase_of(step, self._config)
        path = phase_path(self._config, phase)
        with Journal(path) as journal:
            self._run_missing(phase, journal)
            outcomes = journal.outcomes
        write_run_report(self._config)
        return {f"eval/{row.operator}": row.accuracy for row in rows(outcomes, phase)}

    def _run_missing(self, phase: str, journal: Journal) -> None:
        train = self._config.train
        done = {(o.problem_id, o.operator, o.sample) for o in journal.outcomes}
        total = len(self._problems) * len(self._operators) * train.eval_samples
        with tqdm(total=total, initial=len(done), desc=f"evaluate {phase}", unit="rollout") as bar:

            def keep(outcome: Outcome, rollout: Rollout) -> None:
                journal.add(outcome, rollout)
                bar.update()

            work = evaluate(
                self._problems,
                self._operators,
                self._settings,
                self._grader,
                samples=train.eval_samples,
                seed=self._config.seed,
                on_rollout=keep,
                done=done,
                max_in_flight=2 * self._config.rollout.max_concurrency,
            )
            self._engine.run(work, train.collective_timeout_seconds)


def phase_of(step: int, config: TrainingConfig) -> str:
    """``before`` training, ``after`` its last step, or ``step_N``."""
    if step == 0:
        return BEFORE
    return AFTER if step == config.train.max_steps else f"step_{step:06d}"


def phase_path(config: TrainingConfig, phase: str) -> Path:
    """Where a phase keeps its rollouts."""
    return Path(config.output_dir) / "evaluation" / phase / "rollouts.jsonl"


def write_run_report(config: TrainingConfig) -> str:
    """Writes report.json and report.md from the phases on disk; gives the text of the latter."""
    folder = Path(config.output_dir) / "evaluation"
    names = [path.parent.name for path in sorted(folder.glob("*/rollouts.jsonl"))]
    phases = [BEFORE, *(n for n in names if n.startswith("step_")), AFTER]
    order = config.train.eval_operators
    outcomes = {
        name: sorted(read_outcomes(phase_path(config, name)), key=lambda o: order.index(o.operator))
        for name in phases
        if name in names
    }
    lines = [row for name, items in outcomes.items() for row in rows(items, name)]
    return write_report(Path(config.output_dir), lines, _differences(outcomes))


def _differences(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Difference]:
    """What training gained each operator, then each operator against trace."""
    found: list[Difference] = []
    if BEFORE in outcomes and AFTER in outcomes:
        for name in dict.fromkeys(item.operator for item in outcomes[AFTER]):
            after = [o for o in outcomes[AFTER] if o.operator == name]
            before = [o for o in outcomes[BEFORE] if o.operator == name]
            found.append(difference(f"{name} after", after, f"{name} before", before))
    for phase, items in outcomes.items():
        found += pairwise(phase, items)
    return found
