"""Loads problems from JSONL, the HF hub or reasoning-gym, and refuses unusable ones.

A gold answer that does not parse would make every rollout of its problem wrong. ``check_gold`` (passed in;
it raises ``ValueError``) finds it here, before any process starts.
"""

import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.json_lines import BrokenRowError, parse_row, read_lines, text_of
from configs.schema import DataConfig
from rollout.records import Problem

logger = logging.getLogger(__name__)

MAX_ODD_SHARE = 0.1
"""Share of golds that were dropped, or that hold words, above which a data set is warned of."""

CheckGold = Callable[[str], str | None]
"""Raises ``ValueError`` for a gold that cannot be used; returns a doubt about one that can, None if none."""

Row = tuple[str, dict[str, Any]]
"""Location of a row (for errors), and its fields."""


def load_train(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads the problems to train on.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a row is invalid or lacks a field, a gold answer does not parse, an id repeats, or
            no problem is left. The message names file, line and field.
    """
    if config.source != "reasoning_gym":
        return _whole(config, check_gold)
    held_out = {row[config.question_field] for _, row in _held_out(config)}
    rows = _generated(config, "train", size=config.num_train, leave_out=held_out)
    if not rows:
        raise ValueError(
            f"data.num_held_out = {config.num_held_out} holds out every problem that data.task "
            f"'{config.task}' makes with data.task_options {config.task_options}. Lower data.num_held_out, "
            "or widen the options."
        )
    return _checked(rows, config, check_gold, f"{config.task}")


def load_rows(rows: Iterable[Mapping[str, Any]], config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Returns the problems of rows in memory, read like the lines of a JSONL file.

    Args:
        rows: Rows with the fields that ``config`` names, and optionally ``id`` and ``source``.
        config: The names of the fields, and what to do with an invalid gold answer; its source is ignored.
        check_gold: Raises ``ValueError`` for a gold answer that does not parse.

    Raises:
        ValueError: Like ``load_train``.
    """
    return _checked(
        ((f"problem {i}", dict(row)) for i, row in enumerate(rows)), config, check_gold, "problems"
    )


def load_eval(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads the first ``num_eval`` held-out problems that training evaluates on; empty if there are none.

    ``num_held_out`` reasoning-gym problems are generated with their own seed, and ``load_train`` leaves
    out their questions, so the two sets are disjoint.

    Raises:
        FileNotFoundError, ValueError: Like ``load_train``.
    """
    if config.source == "jsonl":
        if config.eval_path is None:
            return []
        rows = list(_jsonl(Path(config.eval_path)))[: config.num_eval]
        return _checked(rows, config, check_gold, config.eval_path)
    if config.source == "hf":
        if config.eval_split is None:
            return []
        rows = list(_hub(config, config.eval_split))[: config.num_eval]
        return _checked(rows, config, check_gold, f"{config.name}")
    return _checked(_held_out(config)[: config.num_eval], config, check_gold, f"{config.task}")


def load_evaluated(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads the problems of ``python -m rollout``: the first ``limit`` of the data set.

    The data set is the file or the split; for generated problems, the held-out ones.

    Raises:
        FileNotFoundError, ValueError: Like ``load_train``.
    """
    if config.source != "reasoning_gym":
        return _whole(config, check_gold)[: config.limit]
    return _checked(_held_out(config)[: config.limit], config, check_gold, f"{config.task}")


def _whole(config: DataConfig, check_gold: CheckGold) -> list[Problem]:
    """Loads every problem of a file or a split."""
    if config.source == "jsonl":
        assert config.path is not None
        return _checked(_jsonl(Path(config.path)), config, check_gold, config.path)
    return _checked(_hub(config, config.split), config, check_gold, f"{config.name}")


def _held_out(config: DataConfig) -> Sequence[Row]:
    """Returns the generated problems that training never uses."""
    return _generated(config, "eval", size=config.num_held_out)


def _jsonl(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist; set data.path or data.eval_path.")
    for number, line in read_lines(path):
        where = f"{path} line {number}"
        try:
            yield where, parse_row(line)
        except BrokenRowError as error:
            raise ValueError(f"{where}: {error}") from error


def _hub(config: DataConfig, split: str) -> Iterator[Row]:
    assert config.name is not None
    from datasets import Dataset, load_dataset, load_from_disk  # here, since the import takes a second

    if Path(config.name, "dataset_info.json").exists() or Path(config.name, "dataset_dict.json").exists():
        loaded = load_from_disk(config.name)
        splits = {"train": loaded} if isinstance(loaded, Dataset) else loaded
        if split not in splits:
            raise ValueError(
                f"data.name {config.name} has no split '{split}'; it has {sorted(splits)}. "
                "Set data.split and data.eval_split."
            )
        dataset = splits[split]
    else:
        dataset = load_dataset(config.name, split=split)
    for number, row in enumerate(dataset):
        yield f"{config.name}[{split}] row {number}", dict(row)


def _generated(
    config: DataConfig, part: str, *, size: int, leave_out: Collection[str] = frozenset()
) -> Sequence[Row]:
    """Returns up to ``size`` different questions of a reasoning-gym task, none from ``leave_out``."""
    assert config.task is not None
    # Problem i of a task is made from seed + i: nearby seeds would generate the same problems.
    seed = random.Random(f"{config.task_seed} {part}").getrandbits(31)
    # More than ``size``, since generated questions may repeat or be left out.
    most = 2 * size + len(leave_out)
    try:
        import reasoning_gym  # here, since the import takes a second

        dataset = reasoning_gym.create_dataset(config.task, seed=seed, size=most, **config.task_options)
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(
            f"reasoning-gym could not make data.task '{config.task}' with data.task_options "
            f"{config.task_options}: {error}"
        ) from error
    rows: dict[str, dict[str, Any]] = {}
    for entry in dataset:
        question = entry["question"].strip()
        if question in leave_out:
            continue
        row = {"id": f"{config.task}-{part}-{config.task_seed}-{len(rows)}", "source": config.task}
        row |= {config.question_field: question, config.answer_field: str(entry["answer"])}
        rows.setdefault(question, row)
        if len(rows) == size:
            break
    return [(f"{config.task} problem {i}", row) for i, row in enumerate(rows.values())]


def _checked(rows: Iterable[Row], config: DataConfig, check_gold: CheckGold, name: str) -> list[Problem]:
    problems: dict[str, Problem] = {}
    dropped: list[str] = []
    doubts: list[str] = []
    for index, (where, row) in enumerate(rows):
        problem = _problem(where, row, config, default_id=f"{Path(name).stem}-{index}")
        if problem.id in problems:
            raise ValueError(f"{where}: the id '{problem.id}' occurs twice; ids must be unique.")
        try:
            doubt = check_gold(_gold(row[config.answer_field], problem.answer))
        except ValueError as error:
            reason = f"{where}: the gold answer {_short(row[config.answer_field])} (field "
            reason += f"'{config.answer_field}') does not parse ({error})"
            if config.on_bad_gold == "refuse":
                raise ValueError(
                    f"{reason}, so every rollout of this problem would count as wrong. "
                    "Correct it, or set data.on_bad_gold=drop."
                ) from error
            dropped.append(reason)
            continue
        if doubt:
            doubts.append(f"{where}: {doubt}")
        problems[problem.id] = problem
    _warn(name, len(problems), dropped, doubts)
    if not problems:
        raise ValueError(f"{name} contains no problem.")
    return list(problems.values())


def _gold(value: object, text: str) -> str:
    """Returns the gold answer ``text`` that a field's ``value`` was read as.

    Raises:
        ValueError: If the field is a missing value.
    """
    if text:
        return text
    hint = ""
    if isinstance(value, str) and value.strip():
        hint = f"; if it is the answer, write \\text{{{value.strip()}}}"
    raise ValueError(f"it is a missing value{hint}")


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


def _problem(where: str, row: dict[str, Any], config: DataConfig, *, default_id: str) -> Problem:
    """Returns the problem of a row; its answer is empty if the row's gold is a missing value.

    Raises:
        ValueError: If a field is absent or has the wrong type, or the question is missing.
    """
    fields = (config.question_field, config.answer_field)
    if absent := [name for name in fields if name not in row]:
        raise ValueError(
            f"{where} has no field '{absent[0]}'; it has {sorted(row)}. "
            "Set data.question_field and data.answer_field."
        )
    try:
        question = text_of(row, config.question_field, numbers=False)
        answer = text_of(row, config.answer_field, numbers=True)
        own_id, source = (
            text_of(row, name, numbers=True) if name in row else None for name in ("id", "source")
        )
    except BrokenRowError as error:
        raise ValueError(f"{where}: {error}") from error
    if question is None:
        value = _short(row[config.question_field])
        raise ValueError(f"{where}: the field '{config.question_field}' is a missing value ({value}).")
    return Problem(id=own_id or default_id, question=question, answer=answer or "", source=source or "")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
