"""The code of docs/rewards.md runs as it stands, in order; only the judge's address is replaced."""

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import REPO
from stub_server import StubServer

import rewards

pytestmark = pytest.mark.component

PAGE = (REPO / "docs" / "rewards.md").read_text(encoding="utf-8")
JUDGE = "http://localhost:8000/v1"


class JudgeStub(StubServer):
    """A judge to whom everything is correct."""

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._chat)

    async def _chat(self, request: web.Request) -> web.Response:
        system = (await request.json())["messages"][0]["content"]
        code = re.findall(r'"code": "(\w+)"', system)[0]
        content = f'{{"code": "{code}", "verdict": "correct"}}'
        usage = {"prompt_tokens": 9, "completion_tokens": 5}
        return web.json_response({"choices": [{"message": {"content": content}}], "usage": usage})


async def _cells(folder: Path) -> dict[str, Any]:
    """The names that the blocks leave behind, run one after the other as cells of a notebook."""
    names: dict[str, Any] = {"__name__": "cells"}
    async with JudgeStub() as judge:
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M):
            if file := re.match(r"# (\w+)/(\w+\.py)", block):
                (folder / file[1]).mkdir(exist_ok=True)
                (folder / file[1] / file[2]).write_text(block)
                continue
            block = block.replace(JUDGE, f"{judge.url}/v1")
            code = compile(block, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            value = eval(code, names)
            if inspect.isawaitable(value):
                await value
    return names


def test_the_page_runs_and_prints_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    names = asyncio.run(_cells(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "correct 0.5 box"
    assert lines[1] == "['correct', 'correct', 'unparsable']"
    assert lines[3:5] == ["correct", "correct 9"]  # the program; the judge
    assert lines[5].startswith("0.5") and "overlong" in lines[5]
    assert lines[6:] == ["0.5", "[1.0]"]
    assert names["same"].is_correct and names["answer"] == "0.5"


def test_every_exported_name_is_on_the_page() -> None:
    assert [name for name in rewards.__all__ if f"`{name}" not in PAGE] == []
