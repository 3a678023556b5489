"""``python -m rollout``: runs operators over a data set and reports accuracy against token budgets."""

from configs.stopping import STOP, Stopped, leave, resume_command

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

import asyncio
import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from configs.compose import load_operator, run
from configs.exit_status import PREEMPTED
from configs.schema import WITHOUT_EFFECT, EvaluationConfig
from rewards.build import build_scorer
from rewards.gold import check_gold
from rewards.grader import Grader
from rollout.build import build_operator, load_codec, policy_settings
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import Comparison, make_missing, missing
from rollout.evaluation.journal import Journal
from rollout.evaluation.pareto import draw_pareto
from rollout.evaluation.report import compare, require_outcomes, write_report
from rollout.output_lock import locked
from rollout.problems import load_evaluated
from rollout.prompts import Codec


def main(config: EvaluationConfig, overrides: list[str]) -> None:
    """Loads problems, starts or reaches workers, runs the missing rollouts and writes the report."""
    try:
        with STOP.interrupting(), locked(Path(config.output_dir)):
            print(_evaluate(config))
    except Stopped:
        print(
            f"rollout: stopped by {STOP.name}; finished rollouts are in {config.output_dir}/rollouts.jsonl; "
            f"resume with: {resume_command('rollout')}",
            file=sys.stderr,
        )
        leave(PREEMPTED)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"rollout: {error}")
    written = "report.json, report.md, pareto.png, rollouts.jsonl"
    print(f"\nWritten to {config.output_dir}: {written}", file=sys.stderr)


def _evaluate(config: EvaluationConfig) -> str:
    output_dir = Path(config.output_dir)
    codec = load_codec(config.model, config.rollout)
    comparison = _comparison(config)
    _remember_config(config, output_dir)
    thinking = config.operator.thinking
    # A chat endpoint applies its own template, so this tokenizer's says nothing about its thinking.
    opened = not config.rollout.chats and codec.opens_thinking(thinking.open)
    with (
        build_scorer(config.rewards, thinking, prompt_opens_thinking=opened) as scorer,
        Journal(output_dir / "rollouts.jsonl") as journal,
    ):
        grader = Grader(scorer)
        if not _is_complete(comparison, journal):
            _run_missing(config, comparison, codec, grader, journal)
        require_outcomes(journal.outcomes, journal.failures)
        work = compare(
            [operator.name for operator in comparison.operators],
            [problem.id for problem in comparison.problems],
            journal.outcomes,
            list(journal.failures.values()),
            grader.same,
            num_traces=comparison.num_traces,
        )
        report = asyncio.run(work)
    draw_pareto(report.rows, output_dir / "pareto.png")
    return write_report(output_dir, report)


def _comparison(config: EvaluationConfig) -> Comparison:
    names = config.operators or [config.operator.name]
    return Comparison(
        problems=load_evaluated(config.data, check_gold),
        operators=[build_operator(load_operator(name, config.operator)) for name in names],
        trace=build_operator(load_operator("trace", config.operator)),
        samples=config.samples,
    )


def _is_complete(comparison: Comparison, journal: Journal) -> bool:
    """Returns True if no rollout is missing, neither of the operators nor for the votes."""
    done = journal.done
    left = itertools.chain(comparison.planned(), comparison.planned_votes(journal.outcomes))
    return next(missing(left, done), None) is None


def _run_missing(
    config: EvaluationConfig,
    comparison: Comparison,
    codec: Codec,
    grader: Grader,
    journal: Journal,
) -> None:
    with RolloutEngine(config.rollout, config.model.path, Path(config.output_dir) / "logs") as engine:
        settings = policy_settings(config.operator, config.rollout, engine.sampler, codec)
        limit = 2 * config.rollout.max_concurrency
        work = make_missing(comparison, settings, grader, journal, seed=config.seed, max_in_flight=limit)
        # No limit on the whole: each request, restart and verdict has its own.
        engine.run(work, None, what="the evaluation")


def _remember_config(config: EvaluationConfig, output_dir: Path) -> None:
    """Writes ``config.yaml``; refuses a folder that holds another evaluation.

    Raises:
        ValueError: If the folder's config differs in an option that decides what is sampled.
    """
    decisive = {name: value for name, value in asdict(config).items() if name != "output_dir"}
    path, journal = output_dir / "config.yaml", output_dir / "rollouts.jsonl"
    if path.exists() and journal.exists() and journal.stat().st_size:
        differing = list(_differing(yaml.safe_load(path.read_text()), decisive))
        if differing:
            raise ValueError(
                f"{output_dir} holds an evaluation with another {', '.join(differing)}; "
                "set output_dir to a new folder, or delete it."
            )
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(decisive, sort_keys=False))


def _differing(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yields the full names of changed options that decide what is sampled."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from (f"{name}.{inner}" for inner in _differing(old, new))
        elif old != new and name not in WITHOUT_EFFECT:
            yield name


if __name__ == "__main__":
    run("evaluation", main)
