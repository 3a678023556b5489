"""Loads the problems of a run, and refuses or warns of unusable data."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs.schema import DataConfig
from rollout.problems.reading import CheckGold, read, short
from rollout.problems.sources import Source, eval_source, evaluated_source, train_source
from rollout.records import Problem

logger = logging.getLogger(__name__)

MAX_ODD_SHARE = 0.1
"""Share of golds that were dropped, or that hold words, above which a data set is warned of."""


def load_train(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads the problems to train on (``train_source``).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a row is invalid or lacks a field, a gold answer does not parse, an id repeats, or
            no problem is left. The message names file, line and field.
    """
    return _loaded(train_source(config), config, check_gold)


def load_rows(rows: Iterable[Mapping[str, Any]], config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Returns the problems of rows in memory, read like the lines of a file.

    Args:
        rows: Rows with the fields that ``config`` names, and optionally ``id`` and ``source``.
        config: The names of the fields, and what to do with an invalid gold answer; its source is ignored.
        check_gold: Raises ``ValueError`` for a gold answer that does not parse.

    Raises:
        ValueError: Like ``load_train``.
    """
    located = ((f"problem {i}", dict(row)) for i, row in enumerate(rows))
    return _loaded(Source("problems", located), config, check_gold)


def load_eval(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads the held-out problems that training evaluates on (``eval_source``); empty if there are none.

    Raises:
        FileNotFoundError, ValueError: Like ``load_train``.
    """
    source = eval_source(config)
    return _loaded(source, config, check_gold) if source else []


def load_evaluated(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads the problems of ``python -m rollout``: the first ``limit`` of ``evaluated_source``.

    Raises:
        FileNotFoundError, ValueError: Like ``load_train``.
    """
    return _loaded(evaluated_source(config), config, check_gold)[: config.limit]


def _loaded(source: Source, config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    reading = read(source, config, check_gold, drops=config.on_bad_gold == "drop")
    if reading.system:
        logger.warning(
            "%s: its chats have a system prompt, which is left out: that of a run is "
            "operator.prompts.system. The first: %s", source.name, short(reading.system),
        )  # fmt: skip
    _warn(source.name, len(reading.problems), reading.dropped, reading.doubts)
    if not reading.problems:
        raise ValueError(f"{source.name} contains no problem.")
    return list(reading.problems.values())


def _warn(name: str, kept: int, dropped: Sequence[str], doubts: Sequence[str]) -> None:
    """Logs how many golds were dropped, and, above ``MAX_ODD_SHARE``, how many are doubtful."""
    if dropped:
        share = len(dropped) / (kept + len(dropped))
        many = " Look at the data: so many bad golds are seldom single mistakes." * (share > MAX_ODD_SHARE)
        logger.warning(
            "%s: dropped %d problems of %d (%.1f%%) whose gold answer does not parse; the first: %s.%s",
            name, len(dropped), kept + len(dropped), 100 * share, dropped[0], many,
        )  # fmt: skip
    if len(doubts) > MAX_ODD_SHARE * kept:
        logger.warning(
            "%s: %d of %d gold answers (%.1f%%, limit %.0f%%) are doubtful, and most rollouts on them may "
            "count as wrong; the first: %s",
            name, len(doubts), kept, 100 * len(doubts) / kept, 100 * MAX_ODD_SHARE, doubts[0],
        )  # fmt: skip
