"""``python -m rollout``: an operator over a data set; accuracy against token budgets."""

import sys
from dataclasses import asdict
from pathlib import Path

import yaml
from tqdm import tqdm
from transformers import AutoTokenizer

from configs.compose import load_operator, run
from configs.schema import EvaluationConfig
from rewards.build import build_scorer
from rewards.gold import check_gold
from rewards.grader import Grader
from rollout.build import build_operator, policy_settings
from rollout.engine import RolloutEngine
from rollout.evaluate import Outcome, evaluate, rows
from rollout.journal import Journal
from rollout.operators import Operator
from rollout.problems import load_eval, load_train
from rollout.prompts import Codec
from rollout.records import Problem, Rollout
from rollout.report import pairwise, write_report

DAY_SECONDS = 86_400.0


def main(config: EvaluationConfig, overrides: list[str]) -> None:
    """Loads problems, starts or reaches workers, runs what is not done yet, reports."""
    output_dir = Path(config.output_dir)
    # A file or hub set is the set to evaluate; generated problems have a held-out part.
    load = load_eval if config.data.source == "reasoning_gym" else load_train
    problems = load(config.data, check_gold)[: config.data.num_eval]
    operators = [
        build_operator(load_operator(name, config.operator))
        for name in config.operators or [config.operator.name]
    ]
    tokenizer = AutoTokenizer.from_pretrained(
        config.model.path, trust_remote_code=config.model.trust_remote_code
    )
    thinking = config.operator.thinking
    _remember_config(config, output_dir)
    with Journal(output_dir / "rollouts.jsonl") as journal:
        if len(journal.outcomes) < len(problems) * len(operators) * config.samples:
            with (
                build_scorer(
                    config.rewards,
                    thinking,
                    prompt_opens_thinking=Codec(tokenizer=tokenizer).opens_thinking(thinking.open),
                ) as scorer,
                RolloutEngine(config.rollout, config.model.path, output_dir / "logs") as engine,
            ):
                settings = policy_settings(config.operator, config.rollout, engine.pool, tokenizer)
                _run_missing(config, problems, operators, engine, settings, Grader(scorer), journal)
        outcomes = sorted(journal.outcomes, key=lambda o: (o.problem_id, o.sample))
    names = [operator.name for operator in operators]
    outcomes.sort(key=lambda o: names.index(o.operator))
    print(write_report(output_dir, rows(outcomes, ""), pairwise("", outcomes)))
    print(f"\nWritten to {output_dir}: report.json, report.md, rollouts.jsonl", file=sys.stderr)


def _run_missing(
    config: EvaluationConfig,
    problems: list[Problem],
    operators: list[Operator],
    engine: RolloutEngine,
    settings,
    grader: Grader,
    journal: Journal,
) -> None:
    done = {(o.problem_id, o.operator, o.sample) for o in journal.outcomes}
    total = len(problems) * len(operators) * config.samples
    with tqdm(total=total, initial=len(done), unit="rollout", desc="evaluate") as bar:

        def keep(outcome: Outcome, rollout: Rollout) -> None:
            journal.add(outcome, rollout)
            bar.update()

        work = evaluate(
            problems,
            operators,
            settings,
            grader,
            samples=config.samples,
            seed=config.seed,
            on_rollout=keep,
            done=done,
            max_in_flight=2 * config.rollout.max_concurrency,
        )
        engine.run(work, DAY_SECONDS)


def _remember_config(config: EvaluationConfig, output_dir: Path) -> None:
    """Writes config.yaml; refuses a folder that holds another evaluation.

    Raises:
        ValueError: If the folder's config differs in anything that decides what is sampled.
    """
    decisive = {name: value for name, value in asdict(config).items() if name != "output_dir"}
    path = output_dir / "config.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text())
        differing = sorted(name for name in decisive if decisive[name] != before.get(name))
        if differing:
            raise ValueError(
                f"{output_dir} holds an evaluation with another {', '.join(differing)}; "
                "set output_dir to a new folder, or delete it."
            )
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(decisive, sort_keys=False))


if __name__ == "__main__":
    run("evaluation", main)
