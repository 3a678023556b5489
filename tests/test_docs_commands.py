"""Every command in the documentation is one that exists, with options that its config accepts."""

import re
import shlex
from collections.abc import Iterator

import pytest
from conftest import REPO

from configs.compose import load
from configs.config_errors import ConfigError

ROOTS = {
    "launch": "job",
    "launch.plan": "job",
    "launch.slurm": "job",
    "launch.workers": "workers",
    "rollout": "evaluation",
    "rollout.problems": "problems",
    "train": "training",
    "train.coldstart": "training",
    "train.study": "study",
}
"""Command -> the config that it composes."""
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def _commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the blocks of shell, from its module on, without comments."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if "-m" in words and words[words.index("-m") + 1] in ROOTS:
                    yield words[words.index("-m") + 1 :]


def _shown() -> list[tuple[str, list[str]]]:
    return [(page.name, words) for page in PAGES for words in _commands(page.read_text(encoding="utf-8"))]


def _overrides(words: list[str]) -> list[str]:
    """Overrides of one job: without flags, and with the first value of a sweep."""
    sweeps = "--multirun" in words
    plain = [word for word in words[1:] if "=" in word]
    return [word.split(",")[0] if sweeps else word for word in plain]


@pytest.mark.parametrize(
    ("page", "words"), _shown(), ids=lambda value: value if isinstance(value, str) else " ".join(value)[:50]
)
def test_a_command_composes_a_valid_config(page: str, words: list[str]):
    overrides = _overrides(words)
    if "--config-dir" in words:  # of the operator, which the page shows: see test_rollout_build
        overrides = [each for each in overrides if not each.startswith(("operator=", "operators="))]
    load(ROOTS[words[0]], overrides)


def test_commands_are_found_and_a_wrong_one_is_refused():
    text = "```bash\nA=1 python -m rollout data.path=x \\\n  model.path=y operatorz=[pdr]  # a comment\n```\n"
    ((module, *words),) = _commands(text)
    assert (module, words) == ("rollout", ["data.path=x", "model.path=y", "operatorz=[pdr]"])
    with pytest.raises(ConfigError, match="operatorz"):
        load("evaluation", words)
    assert len(_shown()) > 15
    assert {"commands.md", "launching.md"} <= {page for page, _ in _shown()}
