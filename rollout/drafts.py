"""Drafts from an earlier evaluation, in place of drafts that the policy would have to sample."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from rollout.records import ATTEMPTS, Call, Usage


class DraftCache:
    """The plain attempts of a ``rollouts.jsonl``, by problem. They are read, never trained on."""

    def __init__(self, path: Path) -> None:
        """Reads the whole file.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a line is not a rollout, or no line has a plain attempt. It names the line.
        """
        self._drafts: dict[str, list[Call]] = defaultdict(list)
        if not path.is_file():
            raise FileNotFoundError(
                f"collect.draft_cache: {path} does not exist. It is the rollouts.jsonl that "
                "python -m rollout writes to its output_dir."
            )
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.startswith('{"failure"') or not line.endswith("\n"):
                    continue
                try:
                    rollout = json.loads(line)
                    plain = [call for call in rollout["calls"] if _is_plain(call)]
                    self._drafts[rollout["problem"]["id"]] += [_call(call) for call in plain]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"collect.draft_cache: {path} line {number} is no rollout as python -m rollout "
                        f"writes it ({error!r})."
                    ) from error
        if not any(self._drafts.values()):
            raise ValueError(f"collect.draft_cache: {path} holds no attempt at a plain problem.")

    def draw(self, problem_id: str, num: int, rng: random.Random) -> list[Call]:
        """Up to ``num`` different drafts of a problem, as many as there are."""
        drafts = self._drafts.get(problem_id, [])
        return rng.sample(drafts, min(num, len(drafts)))


def _is_plain(call: dict[str, Any]) -> bool:
    return call["role"] in ATTEMPTS and call["round"] == 0 and call["finish"] != "abort"


def _call(call: dict[str, Any]) -> Call:
    ids = tuple(call["completion_ids"])
    return Call(
        role=call["role"],
        round=0,
        parents=(),
        prompt_ids=tuple(call["prompt_ids"]),
        completion_ids=ids,
        sampler_logprobs=(),
        train_mask=(False,) * len(ids),
        versions=(),
        finish=call["finish"],
        text=call["text"],
        label=call["label"],
        usage=Usage(**call["usage"]),
        seconds=0.0,
    )
