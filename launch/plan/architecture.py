"""Sizes of a model that a plan needs, read from its ``config.json`` (plain JSON, no torch)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

KNOWN = Path(__file__).parent / "architectures"
"""Folder with the config.json of models known by their hub name: ``owner/name`` is ``owner--name.json``."""

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Supported model types: dense decoders with grouped-query attention, a gated MLP and RMSNorm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a dense decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """The LM head and the embedding share their weights."""
    qkv_bias: bool
    qk_norm: bool
    """Queries and keys are normalised per head (Qwen3)."""

    @property
    def query(self) -> int:
        """Width of a token's queries over all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of a token's keys over all heads; values have the same."""
        return self.kv_heads * self.head_dim

    @property
    def attention_matrices(self) -> int:
        """Parameters of the weight matrices of one layer's attention."""
        # q and o are hidden x query, k and v hidden x key.
        return 2 * self.hidden * self.query + 2 * self.hidden * self.key

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's weight matrices, without norms and biases."""
        # gate, up and down are hidden x intermediate.
        return self.attention_matrices + 3 * self.hidden * self.intermediate

    @property
    def embedding(self) -> int:
        """Parameters of the embedding; the LM head has as many."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        biases = self.query + 2 * self.key if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        layers = self.layers * (self.layer_matrices + biases + norms)
        # ``hidden`` alone is the norm after the last layer.
        return layers + self.hidden + self.embedding * (1 if self.tied else 2)

    def adapters(self, rank: int, targets: Sequence[str] = ()) -> int:
        """Returns the parameters of LoRA adapters on the named linear layers, or on all; 0 for rank 0.

        Raises:
            ValueError: If a name is not that of a linear layer.
        """
        # An adapter of an (in x out) matrix is (in x rank) and (rank x out): rank * (in + out) parameters.
        widths = {
            "q_proj": self.hidden + self.query,
            "k_proj": self.hidden + self.key,
            "v_proj": self.hidden + self.key,
            "o_proj": self.query + self.hidden,
            "gate_proj": self.hidden + self.intermediate,
            "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }
        if unknown := set(targets) - set(widths):
            raise ValueError(
                f"model.lora_target_modules names {', '.join(sorted(unknown))}; a plan knows "
                f"{', '.join(widths)}."
            )
        return rank * self.layers * sum(widths[name] for name in targets or widths)

    def kv_bytes(self, bytes_per_value: int) -> int:
        """Returns the bytes of one token in the KV cache: a key and a value in each layer."""
        return 2 * self.layers * self.key * bytes_per_value


def architecture_of(model_path: str) -> Architecture:
    """Returns the sizes of the model in the folder ``model_path``, or of a model of the hub.

    A hub model must be known by name or be in this machine's cache (``HF_HOME``); nothing is fetched.

    Raises:
        ValueError: If there is neither, or the type of the model is not supported.
    """
    folder, known = Path(model_path), KNOWN / f"{model_path.replace('/', '--')}.json"
    for path in (folder / "config.json", known, _cached(model_path)):
        if path is not None and path.is_file():
            return parse_architecture(json.loads(path.read_text(encoding="utf-8")), str(path))
    names = sorted(path.stem.replace("--", "/") for path in KNOWN.glob("*.json"))
    raise ValueError(
        f"model.path is {model_path!r}: there is no {folder / 'config.json'}, and the models known by name "
        f"are {', '.join(names)}, and those in this machine's cache (python -m launch.fetch MODEL). Or put "
        "the model's config.json into a folder and set model.path to it."
    )


def _cached(name: str) -> Path | None:
    """Returns the config.json of a hub model in this machine's cache, or None."""
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path, not a name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def parse_architecture(config: dict[str, Any], source: str) -> Architecture:
    """Returns the sizes in the content of a ``config.json``.

    Raises:
        ValueError: If the model type is not supported, or a size is missing.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{source}: model_type is {kind!r}; a plan can be made for {', '.join(MODEL_TYPES)}."
        )
    try:
        heads = config["num_attention_heads"]
        return Architecture(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
            qk_norm=kind == "qwen3",
        )
    except KeyError as error:
        raise ValueError(f"{source} has no {error}, which a plan needs.") from error
