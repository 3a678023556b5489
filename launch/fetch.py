"""``python -m launch.fetch MODEL``: brings a model of the hub into this machine's cache (``HF_HOME``).

A job runs it before its ranks and workers start, which would otherwise all fetch the model at once. No-op for
a folder. With ``HF_HUB_OFFLINE=1`` it only checks that the model is there.
"""

import sys
from pathlib import Path

from huggingface_hub import snapshot_download

KINDS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py")
"""Files that transformers and vLLM read: weights as safetensors, configs, tokenizer, code of the model."""


def fetch(model: str) -> str:
    """Returns the local folder of a model.

    Raises:
        RuntimeError: If the model cannot be fetched, or offline is not in the cache.
    """
    if Path(model).is_dir():
        return model
    try:
        return snapshot_download(model, allow_patterns=list(KINDS), ignore_patterns=["*/*"])
    except Exception as error:  # of many libraries: requests, huggingface_hub, the operating system
        raise RuntimeError(
            f"The model {model!r} is no folder and could not be fetched from the hub: {error} Check "
            "model.path, or HF_TOKEN for a gated model; or fetch it into HF_HOME on a machine with network "
            "and set HF_HUB_OFFLINE=1."
        ) from error


if __name__ == "__main__":
    try:
        print(f"fetch: {sys.argv[1]} is in {fetch(sys.argv[1])}")
    except RuntimeError as problem:
        sys.exit(f"fetch: {problem}")
