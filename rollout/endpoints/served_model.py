"""Whether a worker serves the model that the run uses."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a worker reports of the model it was started with; None where it does not report."""

    path: str | None
    """Folder or hub name of the model, as it was given to the worker."""
    max_model_len: int | None
    """Limit of prompt plus completion tokens."""


def refuse_other_model(served: ServedModel, url: str, *, model_path: str, max_model_len: int) -> None:
    """Checks that the worker at ``url`` serves the run's model, up to the length that the run counts on.

    Raises:
        ValueError: If it does not. Its answers would be those of another policy, or longer calls refused.
    """
    if served.path is not None and not _is_same(served.path, model_path):
        raise ValueError(
            f"model.path is {model_path}, but the rollout worker {url} serves {served.path}. Start the "
            "worker with the run's model (on another machine: under a path that ends with the same name), or "
            "set model.path to the one that it serves."
        )
    if served.max_model_len is not None and served.max_model_len < max_model_len:
        raise ValueError(
            f"rollout.max_model_len is {max_model_len}, but the rollout worker {url} takes only "
            f"{served.max_model_len} tokens. Start it with a larger --max-model-len, or set "
            f"rollout.max_model_len={served.max_model_len}."
        )


def _is_same(served: str, own: str) -> bool:
    if served == own:
        return True
    if Path(served).exists() and Path(own).exists():
        return Path(served).resolve() == Path(own).resolve()
    # The worker's file system is another one: the same model may lie elsewhere there.
    return Path(served).name == Path(own).name
