"""A chat template that makes no usable prompt is refused before anything starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import PROMPTS_CONFIG
from families import CHAT_TEMPLATE, FAMILIES, GEMMA_TEMPLATE, PHI_TEMPLATE, phi
from tiny import byte_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import train.rank as training
from configs.compose import load
from configs.schema import ModelConfig, RolloutConfig
from rollout import open_policy
from rollout.codec import Codec
from rollout.command import main
from rollout.prompt_probe import check_prompt
from rollout.tokenizer import load_codec

ONE_TURN = "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
BROKEN = {
    "drops the question": ("<|im_start|>user\n<|im_end|>\n" + OPENING, "holds the question 0 times"),
    "repeats the question": (ONE_TURN + ONE_TURN + OPENING, "holds the question 2 times"),
    "changes the question": (
        ONE_TURN.replace("'] }", "'] | upper }") + OPENING,
        "holds the question 0 times",
    ),
    "opens no turn": (ONE_TURN, r"ends with '<\|im_end\|>'"),
    "ends the turn": (ONE_TURN + OPENING + "<|im_end|>\n", r"ends with '<\|im_end\|>'"),
    "ends in padding": (ONE_TURN + OPENING + "<pad>", "ends with '<pad>'"),
    "eats special tokens": (
        ONE_TURN.replace("'] }", "'].split('<think>')[0] }") + OPENING,
        "drops or repeats special tokens",
    ),
    "raises": ("{{ raise_exception('a system prompt is needed') }}", "a system prompt is needed"),
    "does not parse": ("{% for %}", "does not render"),
}


def _with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _appending(*, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer without template that adds its own beginning and end, as add_eos_token=true does."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    single = f"{'<|im_start|> ' * bos}$A{' <|im_end|>' * eos}"
    tokens = [("<|im_start|>", 2), ("<|im_end|>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=tokens
    )
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_templates_of_well_known_families_pass(family: str):
    check_prompt(Codec(tokenizer=FAMILIES[family]()), family)


@pytest.mark.parametrize(("template", "message"), BROKEN.values(), ids=BROKEN)
def test_a_template_that_leaves_no_usable_prompt_is_refused(template: str, message: str):
    with pytest.raises(ValueError, match=rf"model\.path is 'm', whose chat template .*{message}"):
        check_prompt(Codec(tokenizer=_with(template)), "m")


def test_the_refusal_shows_what_was_rendered():
    with pytest.raises(ValueError) as error:
        check_prompt(Codec(tokenizer=_with(ONE_TURN)), "m")
    assert repr("<|im_start|>user\nWhat is 17 + 25?<|im_end|>") in str(error.value)


def test_a_second_beginning_of_sequence_is_refused():
    tokenizer = FAMILIES["gemma"]()
    tokenizer.chat_template = "<bos>" + GEMMA_TEMPLATE
    with pytest.raises(ValueError, match="starts with '<bos>' twice"):
        check_prompt(Codec(tokenizer=tokenizer), "m")


def test_a_tokenizer_that_appends_its_end_is_refused_and_one_that_begins_with_bos_is_not():
    with pytest.raises(
        ValueError, match=r"which has no chat template, .*ends with '<\|im_end\|>'.*add_eos_token"
    ):
        check_prompt(Codec(tokenizer=_appending(eos=True)), "m")
    check_prompt(Codec(tokenizer=_appending(bos=True)), "m")
    check_prompt(Codec(tokenizer=_appending()), "m")


def test_the_opening_of_the_policys_turn_may_be_among_the_listed_ends():
    tokenizer = phi()
    opening, turn_end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    check_prompt(Codec(tokenizer=tokenizer, stop_ids=(opening, turn_end)), "m")
    tokenizer.chat_template = PHI_TEMPLATE.partition("{% if")[0]
    with pytest.raises(ValueError, match=r"ends with '<\|end\|>'"):
        check_prompt(Codec(tokenizer=tokenizer, stop_ids=(opening, turn_end)), "m")


def test_a_template_that_opens_the_thinking_passes():
    check_prompt(Codec(tokenizer=_with(CHAT_TEMPLATE + "<think>\n")), "m")


@pytest.fixture
def unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose template opens no turn for the policy; starting an engine for it fails the test."""

    def started(*_: object) -> None:
        raise AssertionError("the engine was made before the template was tried")

    for module in ("rollout.command", "rollout.api", "train.rank_zero"):
        monkeypatch.setattr(f"{module}.RolloutEngine", started)
    _with(ONE_TURN).save_pretrained(tmp_path / "model")
    (tmp_path / "problems.jsonl").write_text('{"id": "p", "question": "3 + 4 =", "answer": "7"}\n')
    return tmp_path


def _evaluated(folder: Path) -> None:
    overrides = [f"model.path={folder / 'model'}", f"data.path={folder / 'problems.jsonl'}"]
    main(load("evaluation", [*overrides, f"output_dir={folder / 'out'}"]), [])


def _trained(folder: Path) -> None:
    overrides = [f"model.path={folder / 'model'}", f"data.path={folder / 'problems.jsonl'}"]
    training.main(load("training", [*overrides, f"output_dir={folder / 'out'}"]), [])


def _opened(folder: Path) -> None:
    open_policy(folder / "model")


@pytest.mark.parametrize("start", [_evaluated, _trained, _opened])
def test_every_way_to_start_refuses_an_unusable_template_before_any_worker(
    unusable: Path, start: Callable[[Path], None]
):
    with pytest.raises((ValueError, SystemExit), match="makes no prompt that the policy can answer"):
        start(unusable)


def test_the_probe_runs_where_the_tokenizer_is_loaded(unusable: Path):
    with pytest.raises(ValueError, match="makes no prompt"):
        load_codec(ModelConfig(path=str(unusable / "model")), RolloutConfig(), PROMPTS_CONFIG)
