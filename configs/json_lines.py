"""Reads JSON lines, gzipped or not: the problems of a run (``rollout``), files of answers (``rewards``).

It is defined here because both may import ``configs`` and neither may import the other.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from numbers import Rational, Real
from pathlib import Path
from typing import IO, Any, cast

GZIP = b"\x1f\x8b"
"""First bytes of a gzipped file, which is read as what it holds."""
FORMATS = {
    b"BZh": "bzip2; decompress it first (bunzip2)",
    b"\xfd7zXZ": "xz; decompress it first (unxz)",
    b"\x28\xb5\x2f\xfd": "zstandard; decompress it first (unzstd)",
    b"PK\x03\x04": "zip; unpack it first (unzip)",
    b"PAR1": "Parquet; write it as JSON lines first (pandas: to_json(path, orient='records', lines=True))",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)",
}
"""First bytes of files that are no JSON lines -> format and remedy."""
HEAD_BYTES = 4096
"""Number of bytes from which the format of a file is told."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some programs begin a UTF-8 file with it; it is no part of the text."""

SPELLED_MISSING = frozenset({"nan", "NaN", "None", "NaT", "<NA>"})
"""Texts that pandas and Python make of a missing value."""
MISSING_TYPES = frozenset({"NAType", "NaTType"})
"""Types of the missing values of pandas, by name: pandas need not be installed."""


class BrokenRowError(ValueError):
    """A row or a field that cannot be used. The message is a sentence that does not name the place."""


def open_plain(path: Path) -> IO[bytes]:
    """Opens a file for reading; a gzipped one is decompressed while it is read."""
    with path.open("rb") as file:
        is_gzipped = file.read(len(GZIP)) == GZIP
    return cast("IO[bytes]", gzip.open(path)) if is_gzipped else path.open("rb")


def check_format(path: Path) -> None:
    """Recognises, from its first bytes, a file that holds something else than JSON lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is compressed by another program than gzip, Parquet, UTF-16 or one JSON
            array, with the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The data file {path} does not exist.")
    with open_plain(path) as file:
        head = file.read(HEAD_BYTES)
    found = next((name for magic, name in FORMATS.items() if head.startswith(magic)), None)
    if found is None and b"\0" in head:
        found = "UTF-16 or binary, since it holds zero bytes; convert it to UTF-8 first"
    if found is None and head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        found = "one JSON array; write one object a line first (jq -c '.[]')"
    if found is not None:
        raise ValueError(f"{path} must hold JSON lines (one object a line, UTF-8), but is {found}.")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, with their numbers from 1.

    Raises:
        FileNotFoundError, ValueError: Like ``check_format``, before the first line.
    """
    check_format(path)
    with open_plain(path) as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(BYTE_ORDER_MARK)
            if content.strip():
                yield number, content


def parse_row(line: bytes) -> dict[str, Any]:
    """Parses the object of a line.

    Raises:
        BrokenRowError: If the line is not UTF-8, not JSON, nested too deeply, or not an object.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenRowError(f"It is not UTF-8: {error}.") from error
    except RecursionError as error:
        raise BrokenRowError("It is not usable JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise BrokenRowError(f"It is not JSON: {error}. Each line must hold one whole object.") from error
    if not isinstance(row, dict):
        raise BrokenRowError(f"It must be a JSON object, got {type(row).__name__}.")
    return row


def text_of(row: Mapping[str, Any], name: str, *, numbers: bool) -> str | None:
    """Returns a field's text without surrounding white space; None for a missing value (``is_missing``).

    Args:
        row: A row; it may come from JSON, pandas, or a data set.
        name: The field.
        numbers: True reads a number as its decimal digits.

    Raises:
        BrokenRowError: If the row lacks the field, or the field is neither text nor an allowed number, or
            holds half a surrogate pair.
    """
    if name not in row:
        raise BrokenRowError(f"It has no field '{name}'; it has {ascii(sorted(map(str, row)))[:200]}.")
    value = row[name]
    if is_missing(value):
        return None
    if isinstance(value, str):
        return _encodable(value, name).strip()
    if numbers and isinstance(value, Real | Decimal) and not isinstance(value, bool):
        return _digits(value, name)
    wanted = "text or a number" if numbers else "text"
    raise BrokenRowError(
        f"Its field '{name}' must be {wanted}, got {type(value).__name__}: {ascii(value)[:80]}."
    )


def is_missing(value: object) -> bool:
    """True for null, NaN, the missing values of pandas, blank text, and ``SPELLED_MISSING``."""
    if isinstance(value, str):
        return not value.strip() or value.strip() in SPELLED_MISSING
    if isinstance(value, Real | Decimal):
        return bool(value != value)  # NaN alone differs from itself
    return value is None or type(value).__name__ in MISSING_TYPES


def _encodable(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise BrokenRowError(
            f"Its field '{name}' holds half a surrogate pair ({half} at character {error.start + 1}), "
            "which is no character; correct the text."
        ) from error
    return text


def _digits(value: Real | Decimal, name: str) -> str:
    """Returns a number without an exponent: ``1e-7`` is ``0.0000001``."""
    if value in (math.inf, -math.inf):
        raise BrokenRowError(f"Its field '{name}' is the number {value}; it must be finite.")
    return str(value) if isinstance(value, Rational) else format(Decimal(str(value)), "f")
