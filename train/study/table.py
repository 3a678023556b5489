"""The table of a study: accuracy of every arm under every operator, averaged over seeds."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from configs.schema import StudyConfig
from rollout.evaluation.bootstrap import DIFFERENCE, bootstrap
from rollout.evaluation.journal import read_journal
from rollout.evaluation.outcomes import accuracy_by_problem, by_operator
from rollout.evaluation.tables import markdown_table, percent, percent_interval

COLD_START = "cold start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One evaluated policy."""

    arm: str
    folder: Path
    """Folder of its evaluation."""


ByProblem = Mapping[str, float]
"""Accuracy on each problem."""


def study_table(config: StudyConfig, trained: Iterable[Trained]) -> str:
    """Returns Markdown tables: accuracies of arms by operators, then the paired differences.

    An accuracy is the mean over seeds. Its 95% interval is a bootstrap over problems, each represented by
    its mean over seeds; the accuracies of the single seeds follow in parentheses. The vote is the one in the
    reports whose cost is closest to that of pdr.
    """
    by_arm: dict[str, list[Path]] = defaultdict(list)
    for each in trained:
        by_arm[each.arm].append(each.folder)
    seeds = {arm: [_accuracies(folder) for folder in folders] for arm, folders in by_arm.items()}
    operators = list(dict.fromkeys(name for of_arm in seeds.values() for one in of_arm for name in one))
    header = ["arm", *operators, "majority at the cost of pdr"]
    accuracies = [
        [arm, *(_cell([one[name] for one in of_arm]) for name in operators), _votes(by_arm[arm])]
        for arm, of_arm in seeds.items()
    ]
    differences = [
        [f"{one} - {other}", *(_difference(seeds[one], seeds[other], name) for name in operators)]
        for one, other in config.differences
    ]
    lines = [
        *markdown_table(header, accuracies),
        "",
        *markdown_table(["difference, points", *operators], differences),
    ]
    return "\n".join(lines) + "\n"


def _accuracies(folder: Path) -> dict[str, ByProblem]:
    outcomes, _ = read_journal(folder / "rollouts.jsonl")
    return {name: accuracy_by_problem(of_operator) for name, of_operator in by_operator(outcomes).items()}


def _over_seeds(seeds: Sequence[ByProblem]) -> dict[str, float]:
    return {problem: fmean(seed[problem] for seed in seeds) for problem in seeds[0]}


def _cell(seeds: Sequence[ByProblem]) -> str:
    found = bootstrap(list(_over_seeds(seeds).values()))
    own = ", ".join(percent(fmean(seed.values())) for seed in seeds)
    return percent_interval(found.mean, found.low, found.high) + (f" ({own})" if len(seeds) > 1 else "")


def _difference(
    one: Sequence[Mapping[str, ByProblem]], other: Sequence[Mapping[str, ByProblem]], name: str
) -> str:
    first, second = (_over_seeds([seed[name] for seed in of_arm]) for of_arm in (one, other))
    found = bootstrap([first[problem] - second[problem] for problem in first], DIFFERENCE)
    return percent_interval(found.mean, found.low, found.high, sign="+")


def _votes(folders: Sequence[Path]) -> str:
    """Returns the mean accuracy over seeds of the vote that was matched to pdr."""
    found = []
    for folder in folders:
        rows = json.loads((folder / "report.json").read_text())["rows"]
        matched = [row for row in rows if "pdr" in row.get("matched_to", ())]
        found += [row["accuracy"] for row in matched]
    return percent(fmean(found)) if found else "-"
