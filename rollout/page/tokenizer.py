"""Finds the tokenizer with which an evaluation's prompts can be read again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rollout.page.journal import Decode

FILE = "tokenizer.json"


def find_decoder(model: str, folder: Path) -> Decode | None:
    """Returns the function that turns token ids into text, special tokens included.

    Looks for ``tokenizer.json`` in the model's folder, in a checkpoint of the run, and among the files that
    were already fetched from the hub; downloads nothing.

    Args:
        model: Folder of the model, or its name on the hub.
        folder: Folder of the run.

    Returns:
        None if there is no such file.
    """
    from tokenizers import Tokenizer

    path = next(_candidates(model, folder), None)
    if path is None:
        return None
    tokenizer = Tokenizer.from_file(str(path))

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False)

    return decode


def _candidates(model: str, folder: Path) -> Iterator[Path]:
    named = Path(model) / FILE
    if named.is_file():
        yield named
    yield from sorted(folder.glob(f"checkpoints/step_*/policy/{FILE}"))
    if model and not Path(model).exists():
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(model, FILE)
        except ValueError:  # a name that the hub cannot have, such as the path of a folder that is gone
            return
        if isinstance(cached, str):
            yield Path(cached)
