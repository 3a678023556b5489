"""The code of docs/python.md, and the README's, runs as it stands; only models and addresses are replaced."""

import ast
import asyncio
import inspect
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import REPO
from stub_server import StubOptions, StubServer, stub_process
from tiny import byte_tokenizer

import rewards
import rollout

pytestmark = pytest.mark.component

MODEL = "Qwen/Qwen3-1.7B"
WORKER, CHAT = "http://localhost:8000", "http://localhost:8001"


class ChatStub(StubServer):
    """A stand-in for an endpoint that chats; it says 408 in a box."""

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        app.router.add_post("/v1/chat/completions", self._chat)

    async def _chat(self, request: web.Request) -> web.Response:
        choice = {"message": {"role": "assistant", "content": "It is \\boxed{408}."}, "finish_reason": "stop"}
        choices = [{**choice, "index": i} for i in range((await request.json()).get("n", 1))]
        usage = {"prompt_tokens": 9, "completion_tokens": 5 * len(choices)}
        return web.json_response({"choices": choices, "usage": usage})


@pytest.fixture(scope="module")
def chat_url() -> Iterator[str]:
    """In a thread: documented calls block the loop that they are made in."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stub = ChatStub()
    asyncio.run_coroutine_threadsafe(stub.__aenter__(), loop).result(timeout=10)
    yield stub.url
    asyncio.run_coroutine_threadsafe(stub.__aexit__(), loop).result(timeout=10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=10)
    loop.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    tails = [[*byte_tokenizer()(f" \\boxed{{{answer}}}").input_ids, 1] for answer in (408, 408, 4)]
    with stub_process(StubOptions(median_tokens=20, sigma=0.5, tails=tails)) as found:
        yield found


@pytest.fixture
def here(url: str, chat_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands for what in the text. Blocks that show a file are written to ``tmp_path``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shortest", raising=False)  # another page's module of that name
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return {
        f'open_policy("{MODEL}")': f'open_policy("{MODEL}", urls=["{WORKER}"])',  # where a worker would start
        MODEL: str(tmp_path / "model"),
        WORKER: url,
        CHAT: chat_url,
    }


def _blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def _run(blocks: list[str], here: dict[str, str]) -> dict[str, Any]:
    """The names that the blocks leave behind, run one after the other as cells of a notebook."""
    names: dict[str, Any] = {"__name__": "cells"}

    async def cells() -> None:
        for block in blocks:
            if file := re.match(r"# (\w+\.py)", block):
                Path(here[MODEL]).with_name(file[1]).write_text(block)
                continue
            for written, meant in here.items():
                block = block.replace(written, meant)
            code = compile(block, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            value = eval(code, names)
            if inspect.isawaitable(value):
                await value

    asyncio.run(cells())
    return names


def test_the_page_runs_from_top_to_bottom_inside_a_running_loop(here: dict[str, str], capsys):
    blocks = _blocks(REPO / "docs" / "python.md")
    text = "".join(blocks)
    assert all(written in text for written in here)
    names = _run(blocks, here)
    assert names["result"].answer in ("408", "4")
    assert len(names["results"]) == 8
    assert names["verdict"].is_correct
    assert 0 <= names["row"].ci_low <= names["row"].accuracy <= names["row"].ci_high <= 1
    printed = capsys.readouterr().out
    assert "workspace:" in printed and "| pdr | 4 x 2 |" in printed
    with pytest.raises(RuntimeError, match="closed"):
        rollout.trace(names["policy"], "again?")


def test_the_readmes_lines_run(here: dict[str, str], capsys):
    blocks = [block for block in _blocks(REPO / "README.md") if "open_policy" in block]
    assert len(blocks) == 1
    assert len(_run(blocks, here)["result"].graph) >= 13
    assert "[0] draft, round 0" in capsys.readouterr().out


def test_every_exported_function_is_on_the_page():
    text = (REPO / "docs" / "python.md").read_text(encoding="utf-8")
    functions = [name for name in (*rollout.__all__, *rewards.__all__) if name.islower()]
    assert [name for name in functions if name not in text] == []
