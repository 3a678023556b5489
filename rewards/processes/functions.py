"""Functions that are not the verifier's own, called in a worker: a user's reward, reasoning-gym's scorers."""

import base64
import contextlib
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

REASONING_GYM = "reasoning_gym"


def import_module(request: dict[str, Any]) -> dict[str, Any]:
    """Imports the module that a later request needs; if it fails, that request tells why.

    Of reasoning-gym the task's scorer is made, too, which loads the task's data.
    """
    sys.path[:] = request["import_path"]
    with contextlib.redirect_stdout(sys.stderr):
        importlib.import_module(request["imports"])
        if request["imports"] == REASONING_GYM:
            _scorer_of(request["name"])
    return {"status": "imported", "reason": ""}


def inspect_function(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the names of the parameters of the function at ``path``."""
    parameters = inspect.signature(_imported(request)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if positional:
        reason = f"{request['path']} takes `{positional[0]}` by position only; facts are passed by name."
        return {"status": "error", "reason": reason}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        "status": "inspected",
        "reason": "",
        "required": [p.name for p in named if p.default is p.empty],
        "optional": [p.name for p in named if p.default is not p.empty],
        "takes_all": any(p.kind is p.VAR_KEYWORD for p in parameters),
    }


def call_custom(request: dict[str, Any]) -> dict[str, Any]:
    """Calls the function at ``path`` with the request's facts."""
    function = _imported(request)
    facts = pickle.loads(base64.b64decode(request["facts"]))  # written by this program's own main process
    with contextlib.redirect_stdout(sys.stderr):
        value = function(**facts)
    number = _finite(value)
    if number is None:
        reason = f"{request['path']} returned {value!r:.200}; it must return a finite number."
        return {"status": "error", "reason": reason}
    return {"status": "correct" if number > 0 else "wrong", "reason": "", "value": number}


def call_reasoning_gym(request: dict[str, Any]) -> dict[str, Any]:
    """Scores an answer by the scorer of its reasoning-gym task."""
    entry = pickle.loads(base64.b64decode(request["entry"]))  # written by this program's own main process
    # Some scorers compare tuples, and the metadata, which are stored as JSON, have lists for them.
    with_tuples = {**entry, "metadata": _with_tuples(entry["metadata"])}
    with contextlib.redirect_stdout(sys.stderr):
        judge = _scorer_of(request["name"])
        score = judge(request["answer"], entry)
        if _finite(score) is not None and score < 1:
            with contextlib.suppress(Exception):  # a scorer that takes no tuples has told its score above
                score = max(score, judge(request["answer"], with_tuples))
    number = _finite(score)
    if number is None:
        return {"status": "error", "reason": f"reasoning-gym's {request['name']} returned {score!r:.200}."}
    return {"status": "correct" if number >= 1 else "wrong", "reason": "", "value": number}


@lru_cache
def _scorer_of(name: str) -> Callable[..., Any]:
    """Returns the scorer of a task, which some tasks take a second to make."""
    from reasoning_gym import get_score_answer_fn  # here, since the import takes a second

    return get_score_answer_fn(name)


def _with_tuples(value: Any) -> Any:
    """Returns JSON data with tuples in place of lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _imported(request: dict[str, Any]) -> Callable[..., Any]:
    module, _, name = request["path"].partition(":")
    sys.path[:] = request["import_path"]
    return getattr(importlib.import_module(module), name)


def _finite(value: object) -> float | None:
    """Returns a finite number as a float; None for any other value."""
    if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return float(value)
