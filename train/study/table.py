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
PDR = "pdr"
VOTE = "majority at the cost of pdr"


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
    reports whose cost is closest to that of pdr, which is compared with it.

    Raises:
        ValueError: If a report does not tell on which problems its vote was right.
    """
    by_arm: dict[str, list[Path]] = defaultdict(list)
    for each in trained:
        by_arm[each.arm].append(each.folder)
    seeds = {arm: [_accuracies(folder) for folder in folders] for arm, folders in by_arm.items()}
    names = dict.fromkeys(name for of_arm in seeds.values() for one in of_arm for name in one)
    operators = [name for name in names if name != VOTE]
    header = ["arm", *operators, VOTE, f"{PDR} - majority"]
    accuracies = [
        [arm, *(_cell([one[name] for one in of_arm]) for name in operators), *_vote_cells(of_arm)]
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
    """Returns the accuracies of an evaluation by operator, with that of the vote."""
    outcomes, _ = read_journal(folder / "rollouts.jsonl")
    found = {name: accuracy_by_problem(of_operator) for name, of_operator in by_operator(outcomes).items()}
    return found | _vote(folder)


def _over_seeds(seeds: Sequence[ByProblem]) -> dict[str, float]:
    return {problem: fmean(seed[problem] for seed in seeds) for problem in seeds[0]}


def _cell(seeds: Sequence[ByProblem]) -> str:
    found = bootstrap(list(_over_seeds(seeds).values()))
    own = ", ".join(percent(fmean(seed.values())) for seed in seeds)
    return percent_interval(found.mean, found.low, found.high) + (f" ({own})" if len(seeds) > 1 else "")


def _difference(
    one: Sequence[Mapping[str, ByProblem]], other: Sequence[Mapping[str, ByProblem]], name: str
) -> str:
    return _paired([seed[name] for seed in one], [seed[name] for seed in other])


def _paired(one: Sequence[ByProblem], other: Sequence[ByProblem]) -> str:
    first, second = _over_seeds(one), _over_seeds(other)
    found = bootstrap([first[problem] - second[problem] for problem in first], DIFFERENCE)
    return percent_interval(found.mean, found.low, found.high, sign="+")


def _vote_cells(seeds: Sequence[Mapping[str, ByProblem]]) -> tuple[str, str]:
    """Returns the accuracy of the vote matched to pdr, and what pdr has more."""
    if not all(VOTE in seed for seed in seeds):
        return "-", "-"
    # A vote leaves out the problems of which traces failed.
    voted = set.intersection(*(set(seed[VOTE]) for seed in seeds))
    votes, answers = ([{p: seed[name][p] for p in sorted(voted)} for seed in seeds] for name in (VOTE, PDR))
    return _cell(votes), _paired(answers, votes)


def _vote(folder: Path) -> dict[str, ByProblem]:
    """Returns the vote that was matched to pdr; empty if there is none."""
    file = folder / "report.json"
    for row in json.loads(file.read_text())["rows"]:
        if PDR in row.get("matched_to", ()):
            if "by_problem" not in row:
                raise ValueError(
                    f"{file} does not tell on which problems {row['operator']} was right: an earlier version "
                    "wrote it. Remove it and run the study again; the evaluation reads what it has."
                )
            return {VOTE: row["by_problem"]}
    return {}
