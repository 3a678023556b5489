"""Progress bars in files, and the remarks that are dropped."""

import io
import logging
import sys

import pytest

from configs import progress
from configs.noise import REMARKS, drop_remarks


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, steps: int) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress_bar(title="train", total=4, done=1, unit="step") as bar:
        for _ in range(steps):
            bar.set_postfix({"reward": "0.5"}, refresh=False)
            bar.update()
    return stream.getvalue()


def test_in_a_file_a_bar_is_lines_without_cursor_codes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    text = _shown(io.StringIO(), monkeypatch, steps=3)
    assert not set("\r\x1b") & set(text)
    assert [line.partition(" [")[0] for line in text.splitlines()][:4] == [
        f"train: {n}/4" for n in (1, 2, 3, 4)
    ]
    assert "reward=0.5" in text.splitlines()[-1]


def test_in_a_file_a_bar_writes_seldom_and_at_the_end(monkeypatch: pytest.MonkeyPatch):
    text = _shown(io.StringIO(), monkeypatch, steps=3)
    assert [line.partition(" [")[0] for line in text.splitlines()] == ["train: 1/4", "train: 4/4"]


def test_a_bar_within_a_bar_adds_no_cursor_codes_to_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with progress.progress_bar(title="train", total=4, done=1, unit="step"):
        _shown(stream, monkeypatch, steps=3)
    assert all(line.startswith("train: ") for line in stream.getvalue().splitlines())


def test_in_a_terminal_a_bar_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch):
    text = _shown(_Terminal(), monkeypatch, steps=3)
    assert "\r" in text and text.count("\n") == 1


@pytest.mark.parametrize("name", sorted(REMARKS))
def test_a_remark_is_dropped_and_any_other_message_of_its_logger_is_not(name: str):
    logger = logging.getLogger(name)
    before, seen = (list(logger.filters), list(logger.handlers)), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    try:
        logger.addHandler(handler)
        drop_remarks()
        logger.warning("[RANK 0] %s: details", REMARKS[name])
        logger.warning("the disk is full")
        logger.error("it failed")
    finally:
        logger.filters[:], logger.handlers[:] = before
    assert seen == ["the disk is full", "it failed"]
