"""Loads the tokenizer of ``model.path`` and the codec that every call of a run uses."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import ModelConfig, PromptsConfig, RolloutConfig
from rollout.codec import Codec
from rollout.prompt_probe import check_prompt
from rollout.prompts import prompt_texts
from rollout.turns import unread

if TYPE_CHECKING:  # plans check paths without loading torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def load_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of ``model.path``.

    Raises:
        FileNotFoundError: If the path is neither a folder nor a possible name on the hub (``owner/model``).
        ValueError: If it is a LoRA adapter, or no tokenizer loads from it.
    """
    from transformers import AutoTokenizer

    path = model.path
    check_model_path(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path is {path!r}, from which no tokenizer loads: {error} It must be an HF folder "
            "(config.json, tokenizer.json, *.safetensors) or the name of a model on the hub."
        ) from error


def check_model_path(path: str) -> None:
    """Checks that ``model.path`` can be a model, without loading anything of it.

    Raises:
        FileNotFoundError: If the path is neither a folder nor a possible name on the hub (``owner/model``).
        ValueError: If it is a LoRA adapter.
    """
    _refuse_adapter(path)
    if not Path(path).is_dir() and not _may_be_on_the_hub(path):
        raise FileNotFoundError(
            f"model.path: the folder {path} does not exist. Set another folder, or create this one: a cold "
            "start (python -m train.coldstart, with the run's experiment) does, if the experiment has one."
        )


def load_codec(model: ModelConfig, rollout: RolloutConfig, prompts: PromptsConfig) -> Codec:
    """Loads the tokenizer of ``model.path`` and the ids that end a turn, and tries the chat template once.

    A chat endpoint applies its own template and ends turns itself: then the tokenizer only counts tokens.
    Logs a warning of each argument of ``model.chat_template_kwargs`` that the template does not read.

    Raises:
        FileNotFoundError: As ``load_tokenizer``.
        ValueError: As ``load_tokenizer`` and ``prompt_texts``, or if the template renders a question to no
            prompt that the policy can answer (``rollout.prompt_probe``).
    """
    tokenizer = load_tokenizer(model)
    texts = prompt_texts(prompts)
    if rollout.chats:
        if prompts.system or texts.examples:
            tokenizer.chat_template = None  # the template here may refuse such turns; the endpoint's counts
        return Codec(tokenizer=tokenizer, system=prompts.system)
    codec = Codec(
        tokenizer=tokenizer,
        stop_ids=tuple(sorted(i for i in _listed_ends(model) if i != tokenizer.eos_token_id)),
        system=prompts.system,
        template_arguments=model.chat_template_kwargs,
    )
    check_prompt(codec, model.path, (*texts.shots, *texts.refine_shots))
    if os.environ.get("RANK", "0") == "0":  # told once, not by every rank
        _warn_unread(model.path, tuple(unread(tokenizer, model.chat_template_kwargs)))
    return codec


@cache  # rank 0 loads the tokenizer twice
def _warn_unread(path: str, names: tuple[str, ...]) -> None:
    for name in names:
        logger.warning(
            "model.chat_template_kwargs.%s has no effect: the chat template of %s does not read it.",
            name, path,
        )  # fmt: skip


def _listed_ends(model: ModelConfig) -> set[int]:
    """Returns the ids that end a completion by the model's files, found as vLLM finds them."""
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model.path)
    except OSError:  # no generation_config.json
        try:
            config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        except (OSError, ValueError):  # a tokenizer alone, for workers that run elsewhere
            return set()
        generation = GenerationConfig.from_model_config(config)
    listed = generation.eos_token_id
    return set() if listed is None else {listed} if isinstance(listed, int) else set(listed)


def _refuse_adapter(path: str) -> None:
    """Raises ValueError for a folder that holds a LoRA adapter: it is no model, and workers ignore it."""
    settings = Path(path, "adapter_config.json")
    if settings.is_file():
        raise ValueError(
            f"model.path is {path!r}, which holds a LoRA adapter ({settings.name}), not a whole model. "
            "Export the model with the adapter merged (python -m train.export without --adapter, or peft's "
            "merge_and_unload) and set model.path to that folder."
        )


def _may_be_on_the_hub(path: str) -> bool:
    """Returns True for ``owner/model``, unless ``owner`` is a local folder: then a folder was meant."""
    owner, _, name = path.partition("/")
    return bool(name) and "/" not in name and owner[:1] not in (".", "~", "") and not Path(owner).is_dir()
