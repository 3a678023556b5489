"""The evaluation of ``python -m rollout``, once its options are checked."""

import asyncio
import itertools
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import yaml

from configs.compose import load_operator
from configs.exit_status import PREEMPTED
from configs.schema import EvaluationConfig, OperatorConfig, check_draft_url
from configs.stopping import STOP, Stopped, leave, resume_command
from rewards.build import build_scorer, gold_checker
from rewards.grader import Grader
from rollout.build import build_operator, policy_settings
from rollout.codec import Codec
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import Comparison, make_missing, missing
from rollout.evaluation.identity import evaluation_identity
from rollout.evaluation.journal import Journal
from rollout.evaluation.model_files import served_model
from rollout.evaluation.pareto import draw_pareto
from rollout.evaluation.report import Report, compare, require_outcomes, write_report
from rollout.output_lock import locked
from rollout.page.at_end import try_write
from rollout.page.evaluation import write_evaluation_page
from rollout.page.provenance import provenance
from rollout.problems.loading import load_evaluated
from rollout.problems.reading import column_names
from rollout.tokenizer import load_codec


def main(config: EvaluationConfig, overrides: list[str]) -> None:
    """Loads problems, starts or reaches workers, runs the missing rollouts and writes the report."""
    try:
        with STOP.interrupting(), locked(Path(config.output_dir)):
            print(_evaluate(config))
            print(try_write(write_evaluation_page, Path(config.output_dir)), file=sys.stderr)
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
    trace, operators = _operators(config)
    codec = load_codec(config.model, config.rollout, config.operator.prompts)
    comparison = Comparison(
        problems=load_evaluated(config.data, gold_checker(config.rewards)),
        operators=[build_operator(each) for each in operators],
        trace=build_operator(trace),
        samples=config.samples,
    )
    identity = evaluation_identity(
        seed=config.seed,
        model=served_model(config.model, config.rollout),
        operators=[trace, *operators],
        base=config.operator,
        rollout=config.rollout,
        rewards=config.rewards,
    )
    thinking = config.operator.thinking
    # A chat endpoint applies its own template, so this tokenizer's says nothing about its thinking.
    opened = not config.rollout.chats and codec.opens_thinking(thinking.open)
    with (
        build_scorer(config.rewards, thinking, prompt_opens_thinking=opened) as scorer,
        # Refuses a folder that holds another evaluation, before any worker starts.
        Journal(output_dir / "rollouts.jsonl", identity, comparison.problems) as journal,
    ):
        scorer.check_columns(column_names(comparison.problems))
        _write_config(config, output_dir)
        grader = Grader(scorer)
        if not _is_complete(comparison, journal):
            _run_missing(config, comparison, codec, grader, journal)
        report = _report(comparison, journal, grader)
    draw_pareto(report.rows, output_dir / "pareto.png")
    return write_report(output_dir, report)


def _operators(config: EvaluationConfig) -> tuple[OperatorConfig, list[OperatorConfig]]:
    """Returns the plain trace, which measures the cost of votes, and the operators to compare."""
    names = config.operators or [config.operator.name]
    operators = [load_operator(name, config.operator) for name in names]
    for operator in operators:
        check_draft_url(operator, config.rollout)
    return load_operator("trace", config.operator), operators


def _report(comparison: Comparison, journal: Journal, grader: Grader) -> Report:
    outcomes = [outcome for outcome in journal.outcomes if comparison.counts(outcome.key)]
    failures = {key: failure for key, failure in journal.failures.items() if comparison.counts(key)}
    require_outcomes(outcomes, failures)
    work = compare(
        [operator.name for operator in comparison.operators],
        [problem.id for problem in comparison.problems],
        outcomes,
        list(failures.values()),
        grader.same,
        num_traces=comparison.num_traces,
    )
    return asyncio.run(work)


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
        settings = policy_settings(config.operator, config.rollout, engine.sampler, codec, engine.drafts)
        limit = 2 * config.rollout.max_concurrency
        work = make_missing(comparison, settings, grader, journal, seed=config.seed, max_in_flight=limit)
        # No limit on the whole: each request, restart and verdict has its own.
        engine.run(work, None, what="the evaluation")


def _write_config(config: EvaluationConfig, output_dir: Path) -> None:
    """Writes ``config.yaml`` and ``versions.txt``, which document the evaluation's last start."""
    options = {name: value for name, value in asdict(config).items() if name != "output_dir"}
    (output_dir / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
    lines = [f"python {sys.version.split()[0]}", f"pdr-rl {version('pdr-rl')}", *provenance()]
    (output_dir / "versions.txt").write_text("\n".join(lines) + "\n")
