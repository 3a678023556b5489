"""What the rollouts of a journal were made with: two rollouts are comparable if this is equal.

A rollout's problem is not part of it: each line of a journal holds its own, so that problems can be added.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.examples import read_examples
from configs.schema import WITHOUT_EFFECT, OperatorConfig, PromptsConfig, RewardsConfig, RolloutConfig
from rollout.records import Problem

_DECIDE_VERDICTS = ("kind", "path", "forms", "limit_seconds", "memory_limit_mb")
"""Options of the verifier that can change a verdict; the others shape rewards or set its speed."""
_DECIDE_IF_SET = ("kind_column", "relative_tolerance", "absolute_tolerance", "judge")
"""More such options, recorded only where they differ from the defaults, which other journals have."""
_NOT_EVALUATED = ("name", "drafts", "top_k_range", "distillers", "thinking", "prompts")
"""Fields of an operator that only training reads, or that are recorded elsewhere."""
_READ_BY = {
    "trace": ("kind", "schedule"),
    "majority": ("kind", "schedule"),
    "best_of_n": ("kind", "schedule", "source", "tail_tokens"),
    "sr": ("kind", "schedule", "workspace_tokens", "error_analysis", "source", "tail_tokens"),
    "genselect": ("kind", "schedule", "match_size", "votes", "source", "tail_tokens"),
}
"""Fields that an operator reads, by kind; other kinds may read all."""
_SHOWN = 60
"""Characters of a value that a message shows."""
_NAMED = 3
"""Number of changed problems that a message names."""
_ABSENT = "not set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What all rollouts of a journal share, and the options of each operator, as plain JSON data."""

    shared: Mapping[str, Any]
    """Name of an option (or of a part of the model) -> its value."""
    operators: Mapping[str, Mapping[str, Any]]
    """Name of an operator -> its options."""

    def differences(self, now: "Identity") -> list[str]:
        """Returns what differs in ``now``, as phrases with name, old and new value.

        Operators that only one of the two has do not differ: a comparison may gain and lose operators.
        """
        found = list(_differing("", self.shared, now.shared))
        for name in self.operators.keys() & now.operators.keys():
            found += _differing(f"operators.{name}.", self.operators[name], now.operators[name])
        return sorted(found)

    def with_operators(self, other: "Identity") -> "Identity":
        """Returns this identity with the operators of both."""
        return replace(self, operators={**self.operators, **other.operators})


def evaluation_identity(
    *,
    seed: int,
    model: Mapping[str, str],
    operators: Sequence[OperatorConfig],
    base: OperatorConfig,
    rollout: RolloutConfig,
    rewards: RewardsConfig,
) -> Identity:
    """Returns the identity of an evaluation's rollouts.

    Code of a custom operator, distiller or reward is recognised by the file of its module; the modules that
    this one imports are not looked at.

    Args:
        seed: Seed that the seed of each rollout derives from.
        model: Result of ``served_model``.
        operators: The operators to evaluate, resolved.
        base: The run's own operator, whose prompts and thinking marks all operators use.
        rollout: Options of the sampling.
        rewards: Options of the verifier.

    Raises:
        ValueError: If the examples of the prompts cannot be read (``read_examples``).
    """
    sampling = {k: v for k, v in asdict(rollout).items() if k not in WITHOUT_EFFECT and k != "chat_url"}
    verifier = {name: getattr(rewards, name) for name in _DECIDE_VERDICTS}
    said, usual = asdict(rewards), asdict(RewardsConfig())
    verifier |= {name: said[name] for name in _DECIDE_IF_SET if said[name] != usual[name]}
    shared = {
        "seed": seed,
        **model,
        **{f"rollout.{name}": value for name, value in sampling.items()},
        **{f"rewards.{name}": value for name, value in verifier.items()},
        **{f"operator.prompts.{name}": text for name, text in _texts(base.prompts).items()},
        **{f"operator.thinking.{name}": text for name, text in asdict(base.thinking).items()},
    }
    if rewards.path is not None:
        shared["code of rewards.path"] = _code_digest(rewards.path)
    return Identity(shared=_plain(shared), operators={each.name: _options(each) for each in operators})


def _texts(prompts: PromptsConfig) -> dict[str, Any]:
    """Returns the texts of the prompts; the examples themselves, whatever the name of their file.

    The system prompt and the examples are left out where there are none, as in journals without them.
    """
    texts = asdict(prompts)
    examples = read_examples(prompts.examples)
    texts["examples"] = [[each.question, each.answer, *each.drafts] for each in examples]
    return {name: text for name, text in texts.items() if text or name not in ("system", "examples")}


def changed_problems(before: Mapping[str, Problem], now: Mapping[str, Problem]) -> list[str]:
    """Returns what changed in the problems ``before``, as phrases; problems that are only in ``now`` are new.

    Names the first few, and the number of the others.
    """
    found = []
    for name, old in before.items():
        new = now.get(name)
        if new is None:
            found.append(f"problem {name!r} is not in the data any more")
            continue
        for part in ("question", "answer"):
            if getattr(old, part) != getattr(new, part):
                found.append(f"{part} of problem {name!r} {_changed(getattr(old, part), getattr(new, part))}")
    others = len(found) - _NAMED
    return found[:_NAMED] + ([f"{others} more differences in the problems"] if others > 0 else [])


def _options(config: OperatorConfig) -> dict[str, Any]:
    options = asdict(config)
    names = _READ_BY.get(config.kind, [name for name in options if name not in _NOT_EVALUATED])
    kept = {name: options[name] for name in names}
    code = {
        f"code of {name}": _code_digest(kept[name])
        for name in ("kind", "distiller")
        if ":" in str(kept.get(name))
    }
    return _plain(kept | code)


def _code_digest(path: str) -> str:
    """Returns the digest of the file of the module in ``package.module:name``; empty if it has no file."""
    try:
        spec = importlib.util.find_spec(path.partition(":")[0])
    except ImportError:  # whatever imports it later names the cause
        return ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    return hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=8).hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values as they come back from JSON, so that both sides compare equal."""
    return json.loads(json.dumps(values))


def _differing(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in old.keys() | new.keys():
        before, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != now:
            yield f"{prefix}{name} {_changed(before, now)}"


def _changed(old: object, new: object) -> str:
    """Returns ``was OLD and is NEW``; of long texts the part around the first difference."""
    first, second = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
    pairs = zip(first, second, strict=False)
    same = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
    start = max(0, same - _SHOWN // 2) if max(len(first), len(second)) > _SHOWN else 0
    return f"was {_excerpt(old, first, start)} and is {_excerpt(new, second, start)}"


def _excerpt(value: object, text: str, start: int) -> str:
    part = text[start : start + _SHOWN]
    cut = ("..." if start else "") + part + ("..." if start + _SHOWN < len(text) else "")
    return repr(cut) if isinstance(value, str) and value != _ABSENT else cut
