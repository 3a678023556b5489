"""A reward function of the user: which facts it takes, by the names of its parameters.

The function's module is imported in worker processes only, so its signature is read there, once.
"""

import base64
import hashlib
import pickle
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any

from rewards.answers.extract import MAX_COMPLETION_CHARS, Rules, extract
from rewards.facts import Facts
from rewards.processes.fork_server import import_path
from rewards.processes.pool import Pool
from rewards.solving import Request, Result
from rewards.tasks.task import Prepared, unparsable

MAX_FACTS_BYTES = 8 * 2**20
"""Limit of what is sent to a worker for one completion."""

FACTS = ("gold", "completion", "answer", *(item.name for item in fields(Facts)))
"""Names that a function may take besides those of the data's columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """Parameters of a reward function."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    """Parameters with a default; passed only if they are known."""
    takes_all: bool
    """True if it has ``**kwargs``, which receives all facts and columns."""

    def check(self, path: str, columns: Collection[str]) -> None:
        """Checks that each required parameter is a fact or a column.

        Raises:
            ValueError: If one is neither; the message lists what exists.
        """
        unknown = [name for name in self.required if name not in FACTS and name not in columns]
        if unknown:
            raise ValueError(
                f"rewards.path {path} needs `{unknown[0]}`, which is no fact and no column of the data. "
                f"Facts: {', '.join(FACTS)}. Columns: {', '.join(sorted(columns)) or 'none'}. Rename the "
                "parameter, or give it a default."
            )


def custom_request(
    path: str,
    import_path: list[str],
    signature: Signature,
    *,
    gold: str,
    completion: str,
    answer: str | None,
    facts: Facts,
) -> Request:
    """Returns the request that calls the function with the facts that it takes.

    Raises:
        ValueError: If a required fact is not known for this completion, the facts are too large, or one
            cannot be pickled.
    """
    known = _known(gold, completion, answer, facts)
    missing = [name for name in signature.required if name not in known]
    if missing:
        raise ValueError(
            f"{path} needs `{missing[0]}`, which this problem has not; it has {', '.join(sorted(known))}."
        )
    if signature.takes_all:
        wanted = known
    else:
        names = (*signature.required, *signature.optional)
        wanted = {name: known[name] for name in names if name in known}
    packed = _packed(path, wanted)
    where = {"import_path": import_path, "imports": path.partition(":")[0]}
    body = {"task": "custom", "path": path, "facts": packed, **where}
    digest = hashlib.blake2b(packed.encode(), digest_size=16).hexdigest()
    return Request(body=body, key=("custom", digest))


def _known(gold: str, completion: str, answer: str | None, facts: Facts) -> dict[str, Any]:
    """Returns everything that is known by name; a fact hides a column of the same name."""
    own = {item.name: getattr(facts, item.name) for item in fields(facts)}
    own |= {"gold": gold, "completion": completion, "answer": answer}
    own |= {"columns": dict(facts.columns), "drafts": list(facts.drafts)}
    return {**facts.columns, **own}


def _packed(path: str, wanted: dict[str, Any]) -> str:
    """Returns the facts as text, pickled by this process for its own worker: any data may be in it."""
    try:
        packed = pickle.dumps(wanted)
    except Exception as error:  # any object of the user's may be among the columns
        raise ValueError(f"What {path} takes cannot be sent to its process: {error}") from error
    if len(packed) > MAX_FACTS_BYTES:
        sizes = {name: len(pickle.dumps(value)) for name, value in wanted.items()}
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"What {path} takes has {len(packed)} bytes, the limit is {MAX_FACTS_BYTES}; `{largest}` alone "
            f"has {sizes[largest]}. Take fewer facts, or shorten that column."
        )
    return base64.b64encode(packed).decode()


class Custom:
    """A function ``package.module:name``. Its signature is requested at once, and awaited on first use."""

    def __init__(self, path: str, rules: Rules, pool: Pool | None) -> None:
        if not all(path.partition(":")):
            raise ValueError(f"`custom_path` is {path!r}; write it as package.module:function.")
        self._path = path
        self._rules = rules
        self._pool = pool
        self._signature: Future[Result] | None = None

    def signature(self) -> "Future[Result]":
        """Returns the future of the function's signature; asks again if that failed."""
        future = self._signature
        if future is None or (future.done() and _failed(future)):
            module = self._path.partition(":")[0]
            where = {"import_path": import_path(), "imports": module}
            body = {"task": "inspect", "path": self._path, **where}
            assert self._pool is not None, "golds are checked without a signature"
            try:
                future = self._signature = self._pool.submit(body)
            except RuntimeError as error:  # closed
                future = Future()
                future.set_result({"status": "error", "reason": str(error)})
        return future

    def check(self, columns: Collection[str]) -> None:
        """Checks, waiting for a worker, that the function exists and takes only what exists.

        Raises:
            ValueError: If it cannot be imported, or needs what is neither a fact nor one of the columns.
        """
        self._read(self.signature().result()).check(self._path, columns)

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Accepts any gold: only the function knows what it needs."""
        return None

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``. Waits for the signature; await it first inside an event loop."""
        found = extract(completion, self._rules)
        if len(completion) > MAX_COMPLETION_CHARS:
            return unparsable(found)
        signature = self._read(self.signature().result())
        return found, custom_request(
            self._path,
            import_path(),
            signature,
            gold=gold,
            completion=completion,
            answer=found.answer,
            facts=facts,
        )

    def _read(self, result: Result) -> Signature:
        if result["status"] != "inspected":
            raise ValueError(f"rewards.path {self._path} cannot be used: {result['reason']}")
        return Signature(
            required=tuple(result["required"]),
            optional=tuple(result["optional"]),
            takes_all=result["takes_all"],
        )


def _failed(future: "Future[Result]") -> bool:
    return future.cancelled() or future.exception() is not None or future.result()["status"] != "inspected"
