"""Reads the rows of a data file: JSON lines, a JSON array, CSV or Parquet; the first three also gzipped."""

import csv
import io
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from configs.json_lines import BYTE_ORDER_MARK, BrokenRowError, open_plain, parse_row, read_lines

Row = tuple[str, dict[str, Any]]
"""Location of a row (for errors), and its fields."""

PARQUET = b"PAR1"
"""First bytes of a Parquet file."""


def file_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a file with their location.

    The content tells the format, except that CSV is told by its name: ``*.csv`` or ``*.csv.gz``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is broken, or the file has none of the formats; names the file and the row.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"data file {path} does not exist; set data.path or data.eval_path.{_near(path)}"
        )
    if path.name.removesuffix(".gz").endswith(".csv"):
        return _csv_rows(path)
    head = _head(path)
    if head.startswith(PARQUET):
        return _parquet_rows(path)
    if head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        return _array_rows(path)
    return _line_rows(path)


def _near(path: Path) -> str:
    """Returns the question whether a file beside ``path`` is meant, if one has nearly its name."""
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1)
    return f" Did you mean '{path.with_name(close[0])}'?" if close else ""


def _head(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read(64)


def _line_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        where = f"{path} line {number}"
        try:
            yield where, parse_row(line)
        except BrokenRowError as error:
            raise ValueError(f"{where}: {error}") from error


def _array_rows(path: Path) -> Iterator[Row]:
    with open_plain(path) as file:
        content = file.read().removeprefix(BYTE_ORDER_MARK)
    try:
        rows = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} starts like a JSON array, but is no JSON in UTF-8: {error}.") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} item {number} must be a JSON object, got {type(row).__name__}.")
        yield f"{path} item {number}", row


def _csv_rows(path: Path) -> Iterator[Row]:
    """Yields the lines of a CSV file whose first line names the columns; every value is text."""
    with open_plain(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names: list[str] | None = None
        begin = 1
        try:
            for values in reader:
                where = f"{path} line {begin}"
                begin = reader.line_num + 1
                if names is None:
                    names = _header(values, where)
                elif values:  # no blank line
                    yield where, _csv_row(names, values, where)
        except csv.Error as error:
            last = f" (read up to line {reader.line_num})" if reader.line_num > begin else ""
            raise ValueError(
                f"{path} line {begin} is no CSV: {error}{last}. A value that begins with a double quote must "
                "end with one, and each one inside must be doubled."
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} line {begin} or a later one is not in UTF-8: {error}.") from error


def _header(names: list[str], where: str) -> list[str]:
    """Returns the names of the columns; the first may be empty, as that of an index that pandas writes.

    Raises:
        ValueError: If there is none, one is empty, or one occurs twice.
    """
    if not any(name.strip() for name in names):
        raise ValueError(f"{where} is blank; the first line must name the columns, e.g. question,answer.")
    for number, name in enumerate(names, start=1):
        if number > 1 and not name.strip():
            raise ValueError(f"{where}: column {number} of {len(names)} has no name; name or remove it.")
        if name in names[: number - 1]:
            raise ValueError(f"{where} has two columns '{name}'; rename one.")
    return names


def _csv_row(names: list[str], values: list[str], where: str) -> dict[str, str]:
    if len(values) != len(names):
        raise ValueError(
            f"{where} has {len(values)} values, not {len(names)}, one for each column of the first line. "
            'Put values that hold a comma or a line break in double quotes ("a, b").'
        )
    return dict(zip(names, values, strict=True))


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # here, since the import takes a second
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is a broken Parquet file after row {number}: {error}.") from error
