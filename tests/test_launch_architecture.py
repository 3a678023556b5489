"""A plan counts parameters as transformers does."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from launch.plan import architecture
from launch.plan.architecture import KNOWN, architecture_of, parse_architecture

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def _parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model_that_transformers_builds(
    kind: type[PreTrainedConfig], tied: bool, tmp_path: Path
):
    config = kind(**SIZES, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path)
    assert architecture_of(str(tmp_path)).parameters == _parameters(config)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen/Qwen3-8B", 8_190_735_360), ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248)],
)
def test_models_known_by_name_have_the_parameters_that_their_cards_state(name: str, parameters: int):
    found = architecture_of(name)
    content = json.loads((KNOWN / f"{name.replace('/', '--')}.json").read_text())
    assert found.parameters == parameters == _parameters(AutoConfig.for_model(**content))


def test_every_file_of_known_models_is_read():
    names = [path.stem.replace("--", "/") for path in KNOWN.glob("*.json")]
    assert names
    assert all(architecture_of(name).parameters > 1e8 for name in names)


def test_the_kv_cache_of_a_token_holds_keys_and_values_of_every_layer():
    model = parse_architecture({"model_type": "qwen3", **SIZES}, "test")
    assert model.kv_bytes(2) == 2 * 3 * (2 * 16) * 2


def test_a_model_that_is_nowhere_names_those_that_are_known(tmp_path: Path):
    with pytest.raises(ValueError, match=r"model\.path is .*nowhere.*known by name are .*Qwen/Qwen3-8B"):
        architecture_of(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "mixtral"}, r"test: model_type is 'mixtral'; .*llama, mistral, qwen2, qwen3\."),
        ({"model_type": "llama", "num_attention_heads": 2}, r"test has no 'hidden_size'"),
    ],
)
def test_a_config_that_cannot_be_planned_says_why(content: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        parse_architecture(content, "test")


def test_a_model_of_the_hub_is_known_if_this_machine_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", **SIZES}))
    found = {"me/mine": str(tmp_path / "config.json")}
    monkeypatch.setattr(architecture, "try_to_load_from_cache", lambda name, file: found.get(name))
    assert architecture_of("me/mine") == parse_architecture({"model_type": "mistral", **SIZES}, "test")
    with pytest.raises(ValueError, match=r"those in this machine's cache"):
        architecture_of("me/other")
