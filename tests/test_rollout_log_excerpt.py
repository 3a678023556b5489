"""What a log tells about a failure is its first error, then its end."""

from pathlib import Path

import pytest

from rollout.workers.log_excerpt import END_LINES, log_excerpt

VLLM = "(EngineCore pid=71) ERROR 11-27 07:00:00 [core.py:1108] "
FRAME = '  File "core.py", line 1, in run'
LATER = [f"(APIServer pid=70) line {i}" for i in range(40)]


def _excerpt(folder: Path, *lines: str) -> str:
    log = folder / "log"
    log.write_text("\n".join(lines) + "\n")
    return log_excerpt(log)


def _first_error(folder: Path, *lines: str) -> list[str]:
    """The lines shown as the first error, when much follows it."""
    head, *shown = _excerpt(folder, *lines, *LATER).split("\n")
    if head == f"The end of {folder / 'log'}:":
        return []
    assert head == f"The first error in {folder / 'log'}:"
    return shown[: shown.index(f"The end of {folder / 'log'}:")]


def test_the_end_of_a_log_is_its_last_lines_and_each_state_of_a_progress_bar_is_one(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"%d%%\r" % done for done in range(100)) + b"b\xffd\n")
    head, *lines = log_excerpt(log).split("\n")
    assert head == f"The end of {log}:"
    assert lines == [*(f"  {done}%" for done in range(101 - END_LINES, 100)), "  b\ufffdd"]


def test_the_exception_of_the_first_traceback_is_shown_before_the_end(tmp_path: Path):
    first = ["Traceback (most recent call last):", FRAME, "    run()", "torch.OutOfMemoryError: 2 GiB"]
    second = ["", "The above exception was the direct cause:", "", *first[:-1], "RuntimeError: see above"]
    assert _first_error(tmp_path, "INFO loading", *first, *second) == ["  torch.OutOfMemoryError: 2 GiB"]


def test_an_exception_is_found_behind_the_prefix_of_its_process_and_among_lines_of_others(tmp_path: Path):
    lines = [
        VLLM + "EngineCore failed to start.",
        VLLM + "Traceback (most recent call last):",
        VLLM + FRAME,
        "(APIServer pid=70) INFO waiting",
        VLLM + "ValueError: No available memory for the cache blocks.",
        "(EngineCore pid=71) Process EngineCore:",
    ]
    assert _first_error(tmp_path, *lines) == [f"  {lines[4]}"]


def test_a_message_of_several_lines_is_shown(tmp_path: Path):
    error = [
        "pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, the repository does not exist",
    ]
    shown = _first_error(tmp_path, "Traceback (most recent call last):", FRAME, *error, "no part of it")
    assert shown == [f"  {line}" for line in error]


@pytest.mark.parametrize(
    "line",
    [
        "ERROR 11-27 07:00:00 the port is taken",
        "RuntimeError: no room",
        "api_server.py: error: unrecognized arguments: --fast",
    ],
)
def test_without_a_traceback_the_first_line_that_looks_like_an_error_is_shown(tmp_path: Path, line: str):
    assert _first_error(tmp_path, "INFO 0 errors so far", line, "ERROR another") == [f"  {line}"]


def test_a_log_without_an_error_shows_its_end_alone(tmp_path: Path):
    assert _first_error(tmp_path, "INFO all is well") == []
    assert _excerpt(tmp_path) == f"The end of {tmp_path / 'log'}:\n  "


def test_an_error_that_the_end_shows_is_not_shown_twice(tmp_path: Path):
    assert _excerpt(tmp_path, "INFO loading", "RuntimeError: no room").count("no room") == 1


def test_what_precedes_this_start_is_not_read(tmp_path: Path):
    log = tmp_path / "log"
    earlier = "RuntimeError: of an earlier start\n" + "line\n" * 50
    log.write_text(earlier + "KeyError: now\n" + "\n".join(LATER))
    shown = log_excerpt(log, begin=len(earlier))
    assert "KeyError: now" in shown and "earlier" not in shown
