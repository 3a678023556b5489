"""Recognises the model that an evaluation runs: digests of its files, which no path or date enters.

Weights are sampled, not read whole: of a safetensors file its size, its header (names, types and shapes of
all tensors), and the first, middle and last ``PROBE_BYTES`` of every tensor. A change that leaves all of
these as they were is not noticed; training, merging or quantising a model does not leave them. Files in
another format are read whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from configs.schema import ModelConfig, RolloutConfig

PROBE_BYTES = 4096
"""Bytes read at the start, in the middle and at the end of each tensor."""
MAX_HEADER_BYTES = 100_000_000
"""Limit of a safetensors header: that of the format."""

_CONFIGURATION = ("config.json", "generation_config.json", "*.py")
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
)
_PICKLED = ("*.bin", "*.pt", "*.pth")


def served_model(model: ModelConfig, rollout: RolloutConfig) -> dict[str, str]:
    """Returns what identifies the model that serves the calls, and how it reads prompts, by name.

    A local folder is identified by digests of its configuration, tokenizer and weights; a name on the hub by
    its commit. At a chat endpoint the name of the model is in ``rollout.chat_model``, and ``model.path`` only
    counts tokens.

    Raises:
        FileNotFoundError: If a model on the hub is not in the local cache and cannot be reached.
        ValueError: If a weight file is not in the safetensors format that its name promises.
    """
    return _files(model, rollout) | _template_arguments(model)


def _template_arguments(model: ModelConfig) -> dict[str, str]:
    """Returns the arguments of the chat template; nothing if there are none, as in journals without them."""
    given = model.chat_template_kwargs
    return {"model.chat_template_kwargs": json.dumps(given, sort_keys=True)} if given else {}


def _files(model: ModelConfig, rollout: RolloutConfig) -> dict[str, str]:
    folder = Path(model.path)
    if not folder.is_dir():
        return {"revision of model.path": f"{model.path}@{_commit(model.path)}"}
    tokenizer = {"tokenizer of model.path": _digest(_matching(folder, _TOKENIZER), _whole)}
    if rollout.chats:
        return tokenizer
    weights = list(_matching(folder, ("*.safetensors",)))
    return {
        "configuration of model.path": _digest(_matching(folder, _CONFIGURATION), _whole),
        **tokenizer,
        "weights of model.path": _digest(weights, _sample)
        if weights
        else _digest(_matching(folder, _PICKLED), _whole),
    }


def _matching(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return iter(sorted(found))


def _digest(files: Iterable[Path], read: Callable[[Path], Iterator[bytes]]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for path in files:
        # With its size, so that bytes cannot move from one file to the next unnoticed.
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        for part in read(path):
            total.update(part)
    return total.hexdigest()


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def _sample(path: Path) -> Iterator[bytes]:
    """Yields the header of a safetensors file and the probes of every tensor, in the order of the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER_BYTES else b""
        yield header
        try:
            entries = json.loads(header)
            spans = [entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a safetensors file: its header cannot be read ({error!r}). Copy or export "
                "the model again."
            ) from error
        for start, end in spans:
            yield from _probes(file, 8 + length + start, 8 + length + end)


def _probes(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    middle = (start + end - PROBE_BYTES) // 2
    for place in (start, middle, end - PROBE_BYTES):
        file.seek(max(start, place))
        yield file.read(min(PROBE_BYTES, end - start))


def _commit(name: str) -> str:
    """Returns the commit of the snapshot that the local cache holds of a model on the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        # From the cache first: the tokenizer was just loaded from it, and workers load the same snapshot.
        found = try_to_load_from_cache(name, "config.json")
        path = found if isinstance(found, str) else hf_hub_download(name, "config.json")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model.path is {name!r}, whose config.json is neither in the local cache nor can be loaded from "
            f"the hub: {error}"
        ) from error
    return Path(path).parent.name
