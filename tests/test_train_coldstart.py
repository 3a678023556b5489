"""The cold start's tokenizer, model and folder; SFT itself for two steps."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import REPO
from test_train_worked_solutions import MIX, PROMPTS, examples, problems
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from configs.examples import Example
from configs.schema import ColdStartConfig
from rollout.codec import Codec
from rollout.prompts import PromptTexts
from train.coldstart import make
from train.coldstart.make import RECORD_FILE, build_model, cold_start, is_done, tokenized
from train.coldstart.tokenizer import SPECIAL_TOKENS, build_tokenizer
from train.coldstart.worked_solutions import worked_examples


def tiny_config(seed: int = 0) -> ColdStartConfig:
    return ColdStartConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_steps=2,
        per_device_train_batch_size=4,
        seed=seed,
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(examples(1000), 1024)


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coldstart") / "policy"
    cold_start(tiny_config(), problems(), PROMPTS, folder)
    return folder


def test_every_example_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    codec = Codec(tokenizer=tokenizer)
    for example in examples(400, seed=1):
        ids = tokenizer(example.completion, add_special_tokens=False).input_ids
        assert codec.decode(ids) == example.completion
        assert example.prompt in codec.decode(codec.encode_prompt(example.prompt))


def test_text_the_tokenizer_never_saw_survives_it(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Zwei Äpfel & 3 Birnen:\t¼ \u4f60\u597d"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_each_special_token_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in SPECIAL_TOKENS:
        (token_id,) = tokenizer(f"{token}", add_special_tokens=False).input_ids
        assert tokenizer.decode([token_id]) == token


def test_no_token_holds_a_digit_and_anything_else(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not any(character.isdigit() for character in token)


def test_prompts_are_short(tokenizer: PreTrainedTokenizerFast) -> None:
    codec = Codec(tokenizer=tokenizer)
    lengths = [len(codec.encode_prompt(PROMPTS.solve_text(problem.question))) for problem in problems()]
    assert max(lengths) <= 40


def test_the_chat_template_opens_the_assistants_turn_and_leaves_thinking_to_the_policy(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 2 ="}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n1 + 2 =<|im_end|>\n<|im_start|>assistant\n"


def test_training_prompts_are_the_prompts_that_are_sampled_from(tokenizer: PreTrainedTokenizerFast) -> None:
    codec = Codec(tokenizer=tokenizer)
    made = examples(100)
    for example, row in zip(made, tokenized(codec, made), strict=True):
        prompt = list(codec.encode_prompt(example.prompt))
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [-100] * len(prompt)
        completion = row["labels"][len(prompt) :]
        assert completion == row["input_ids"][len(prompt) :]
        assert completion[-1] == tokenizer.eos_token_id
        assert codec.decode(completion) == example.completion


def test_system_prompt_and_examples_are_learned_as_they_will_be_read() -> None:
    refined = Example("9 + 9 = ?", "It is 18.", drafts=("17", "18"))
    taught = replace(PROMPTS, examples=(Example("9 + 9 = ?", "It is 18."), refined))
    made = list(worked_examples(problems(), taught, MIX, count=200, seed=0))
    codec = Codec(tokenizer=build_tokenizer(made, 1024, "Be careful."), system="Be careful.")
    assert len(codec.encode("Be careful.")) < 4  # a phrase of every prompt is a few tokens
    questions = {problem.id: problem.question for problem in problems()}
    for example, row in zip(made, tokenized(codec, made), strict=True):
        shots = {"solve": taught.shots, "refine": taught.refine_shots}.get(example.form, ())
        prompt = list(codec.encode_prompt(example.prompt, shots))
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [-100] * len(prompt)
        if example.form == "solve":
            assert example.prompt == taught.solve_text(questions[example.problem_id])


def test_the_record_of_a_cold_start_tells_its_texts_apart_and_is_as_before_without_them() -> None:
    def digest(prompts: PromptTexts, system: str) -> object:
        return make._record(tiny_config(), problems(), prompts, system)["data"]

    texts = asdict(PROMPTS)
    del texts["examples"]
    plain = json.dumps([texts, [(problem.id, problem.question) for problem in problems()]])
    assert digest(PROMPTS, "") == hashlib.blake2s(plain.encode(), digest_size=16).hexdigest()
    taught = replace(PROMPTS, examples=(Example("9 + 9 = ?", "It is 18."),))
    assert len({digest(PROMPTS, ""), digest(PROMPTS, "s"), digest(taught, ""), digest(taught, "s")}) == 4


def test_the_default_policy_has_a_few_hundred_thousand_to_three_million_parameters(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert 0.8e6 <= build_model(ColdStartConfig(), tokenizer).num_parameters() <= 3e6


@pytest.mark.component
def test_two_steps_write_a_folder_that_transformers_loads(policy_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_dir)
    model = AutoModelForCausalLM.from_pretrained(policy_dir)
    assert model.config.model_type == "qwen3" and model.config.head_dim == 32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.dtype == torch.float32
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|im_end|>"
    prompt = torch.tensor([Codec(tokenizer=tokenizer).encode_prompt("1 + 2 =")])
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4)
    assert written.shape[1] > prompt.shape[1]
    record = json.loads((policy_dir / RECORD_FILE).read_text(encoding="utf-8"))
    assert record["config"]["max_steps"] == 2 and record["parameters"] == model.num_parameters()


@pytest.mark.component
def test_nothing_is_left_beside_the_folder(policy_dir: Path) -> None:
    assert [path.name for path in policy_dir.parent.iterdir()] == [policy_dir.name]


@pytest.mark.component
def test_a_second_call_does_nothing(policy_dir: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in policy_dir.iterdir()}
    cold_start(tiny_config(), problems(), PROMPTS, policy_dir)
    assert {path.name: path.stat().st_mtime_ns for path in policy_dir.iterdir()} == before


@pytest.mark.component
def test_another_seed_or_other_problems_are_not_done(policy_dir: Path) -> None:
    assert is_done(tiny_config(), problems(), PROMPTS, policy_dir)
    assert not is_done(tiny_config(seed=1), problems(), PROMPTS, policy_dir)
    assert not is_done(tiny_config(), problems()[1:], PROMPTS, policy_dir)


@pytest.mark.component
def test_another_seed_replaces_an_earlier_cold_start(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    cold_start(tiny_config(), problems(), PROMPTS, folder)
    first = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    cold_start(tiny_config(seed=1), problems(), PROMPTS, folder)
    second = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    assert is_done(tiny_config(seed=1), problems(), PROMPTS, folder)
    assert not torch.equal(first, second)


def test_a_folder_that_no_cold_start_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable", encoding="utf-8")
    with pytest.raises(FileExistsError, match="no cold start wrote"):
        cold_start(tiny_config(), problems(), PROMPTS, tmp_path)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "irreplaceable"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"glance_share": 1.5}, "glance_share"),
        ({"solve_share": 0.7, "refine_share": 0.7}, "solve_share"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"vocab_size": 100}, "vocab_size"),
    ],
)
def test_a_config_that_cannot_work_names_the_option(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"coldstart.{named}"):
        ColdStartConfig(**values)  # type: ignore[arg-type]


@pytest.mark.component
def test_the_command_refuses_such_a_folder_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    done = subprocess.run(
        [sys.executable, "-m", "train.coldstart", "experiment=demo", f"model.path={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 1
    said = f"train.coldstart: {tmp_path} holds files that no cold start wrote; choose another folder."
    assert done.stderr.strip().splitlines()[-1] == said
    assert "Traceback" not in done.stderr
