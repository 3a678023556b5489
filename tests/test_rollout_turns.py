"""System prompt, examples and arguments of the chat template: the same wherever a prompt is made."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import (
    CODEC,
    PROMPTS,
    PROMPTS_CONFIG,
    EvenIsCorrect,
    ScriptedPolicy,
    operator,
    problem,
    roll,
    settings,
)
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHAT_TEMPLATE, byte_tokenizer, tiny_model

from configs.compose import load
from configs.config_errors import ConfigError
from configs.examples import Example, read_examples
from configs.schema import ModelConfig, RolloutConfig
from rollout.budget import budget
from rollout.build import policy_settings
from rollout.codec import Codec
from rollout.collection.amortise import Amortiser
from rollout.endpoints.chat import ChatEndpoint
from rollout.operators import run_operator
from rollout.prompt_probe import check_prompt
from rollout.prompts import PromptTexts
from rollout.records import Rollout, Sampling
from rollout.tokenizer import load_codec
from rollout.turns import Turn, unread

SYSTEM = "You are careful."
EXAMPLES = (Example("1 + 1?", r"It is \boxed{2}."), Example("2 + 2?", r"It is \boxed{4}."))
TAUGHT = replace(PROMPTS, examples=EXAMPLES)
REFINED = Example("3 + 3?", r"It is \boxed{6}.", drafts=("6", "7"))
SHOTS = (
    Turn("user", "SOLVE 1 + 1?"),
    Turn("assistant", r"It is \boxed{2}."),
    Turn("user", "SOLVE 2 + 2?"),
    Turn("assistant", r"It is \boxed{4}."),
)
THINKS = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
)


def _chat(*turns: tuple[str, str]) -> str:
    written = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return written + "<|im_start|>assistant\n"


def _with_template(template: str | None, **fields) -> Codec:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Codec(tokenizer=tokenizer, **fields)


def _rolled(codec: Codec = CODEC, prompts: PromptTexts = PROMPTS) -> Rollout:
    """Four drafts, each verified, a summary and a refinement, each on the same texts whatever the prompts."""
    work = run_operator(
        problem(),
        operator((4, 2, 1), "global_summary", top_k=2),
        settings(ScriptedPolicy(), codec=codec, prompts=prompts),
        EvenIsCorrect(),
        0,
        1,
    )
    return asyncio.run(work)


def test_every_call_of_a_rollout_begins_with_the_system_prompt_and_pays_for_it():
    plain, instructed = _rolled(), _rolled(replace(CODEC, system=SYSTEM))
    assert len({call.role for call in instructed.calls}) > 2
    opening = CODEC.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    for before, call in zip(plain.calls, instructed.calls, strict=True):
        assert call.prompt_ids == (*opening, *before.prompt_ids)
        assert call.completion_ids == before.completion_ids
    spent, spent_plain = (budget(each, each.answers[-1]) for each in (instructed, plain))
    assert spent.b_total - spent_plain.b_total == len(opening) * len(plain.calls)
    # On the longest path: a draft, a summary, a draft that reads it, a summary, the answer.
    assert spent.b_seq - spent_plain.b_seq == len(opening) * 5


def test_examples_stand_before_a_question_without_a_workspace_and_nowhere_else():
    plain, taught = _rolled(), _rolled(prompts=TAUGHT)
    turns = CODEC.encode("".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in SHOTS))
    for before, call in zip(plain.calls, taught.calls, strict=True):
        shown = turns if call.role == "draft" and call.round == 0 else ()
        assert call.prompt_ids == (*shown, *before.prompt_ids)
    trace = asyncio.run(
        run_operator(
            problem(),
            operator((1,), name="trace"),
            settings(ScriptedPolicy(), prompts=TAUGHT),
            EvenIsCorrect(),
            0,
            1,
        )
    )
    assert trace.calls[0].prompt_ids == taught.calls[0].prompt_ids


def test_examples_with_drafts_stand_before_a_refinement_as_its_prompt_is_made_and_nowhere_else():
    taught = replace(PROMPTS, examples=(REFINED, *EXAMPLES))
    shown = (
        Turn("user", PROMPTS.refine_text("3 + 3?", "\n\n".join(PROMPTS.draft_texts(["6", "7"])))),
        Turn("assistant", r"It is \boxed{6}."),
    )
    assert (taught.shots, taught.refine_shots) == (SHOTS, shown)
    turns = CODEC.encode("".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in shown))
    for before, call in zip(_rolled(prompts=TAUGHT).calls, _rolled(prompts=taught).calls, strict=True):
        reads = turns if call.parents and call.role in ("draft", "refine") else ()
        assert call.prompt_ids == (*reads, *before.prompt_ids)


def test_right_answers_are_trained_on_the_prompt_of_a_trace_with_its_examples():
    shared = settings(ScriptedPolicy(), codec=replace(CODEC, system=SYSTEM), prompts=TAUGHT)
    rollout = roll(ScriptedPolicy(), operator((4, 1)), num_answers=12)
    group = Amortiser(shared)(rollout, 0).group
    assert group is not None
    turns = (("system", SYSTEM), *SHOTS, ("user", "SOLVE question p"))
    assert CODEC.decode(group.prompt_ids) == _chat(*turns)


def test_without_a_chat_template_system_prompt_and_examples_are_paragraphs():
    codec = _with_template(None, system=SYSTEM)
    shown = codec.decode(codec.encode_prompt("SOLVE 3?", SHOTS))
    assert shown == "\n\n".join([SYSTEM, *(turn.text for turn in SHOTS), "SOLVE 3?"])
    check_prompt(codec, "base", SHOTS)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma"])
@given(
    st.lists(st.sampled_from(["a", " ", "<|im_end|>", "<|end|>", "<|eot_id|>", "<think>", "</think>", "\n"]))
)
def test_no_text_of_a_prompt_writes_a_control_token(family: str, parts: list[str]):
    text = "x" + "".join(parts) + "x"
    plain = Codec(tokenizer=FAMILIES[family](), system="s", marks=("<think>", "</think>"))
    shots = (Turn("user", "q"), Turn("assistant", "a"))
    wanted = plain.guarded.among(plain.encode_prompt("q", shots))
    forged = replace(plain, system=text)
    spelled = (Turn("user", text), Turn("assistant", text))
    assert forged.guarded.among(forged.encode_prompt(text, spelled)) == wanted


def test_arguments_of_the_chat_template_reach_every_prompt_of_a_run(tmp_path: Path):
    model = _saved(tmp_path, THINKS, enable_thinking=False)
    codec = load_codec(model, RolloutConfig(), PROMPTS_CONFIG)
    run = load("evaluation", ["model.path=x", "data.path=x"]).operator
    shared = policy_settings(run, RolloutConfig(), ScriptedPolicy(), codec)
    work = run_operator(problem(), operator((2, 1)), replace(shared, prompts=PROMPTS), EvenIsCorrect(), 0, 1)
    for call in asyncio.run(work).calls:
        assert codec.decode(call.prompt_ids).endswith("<|im_start|>assistant\n<think></think>")
    assert not codec.opens_thinking("<think>")


def test_an_argument_that_the_template_does_not_read_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = _saved(tmp_path, THINKS, enable_thinking=False, enable_thought=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_codec(model, RolloutConfig(), PROMPTS_CONFIG)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("model.chat_template_kwargs.enable_thought has no effect: the chat template of ")


def test_a_template_reads_what_it_names_in_any_block():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content ~ a }}{% endgeneration %}"
        "{% break %}{% endif %}{% endfor %}{% set c = 1 %}{{ c }}"
    )
    assert unread(tokenizer, {"a": 1, "b": 2, "c": 3}) == ["b", "c"]
    tokenizer.chat_template = None
    assert unread(tokenizer, {"a": 1}) == ["a"]


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize"])
def test_an_argument_that_every_prompt_sets_itself_is_refused_when_composed(name: str):
    with pytest.raises(ConfigError, match=rf"model\.chat_template_kwargs holds {name}, which every prompt"):
        load("training", ["model.path=x", "data.path=x", f"model.chat_template_kwargs={{{name}: true}}"])


def test_a_chat_endpoint_gets_no_arguments_of_a_template_of_ours():
    chats = ["rollout.chat_url=http://x/v1", "rollout.chat_model=m", "model.chat_template_kwargs={a: 1}"]
    with pytest.raises(ConfigError, match=r"model\.chat_template_kwargs is \{'a': 1\}, but a chat endpoint"):
        load("evaluation", ["model.path=x", "data.path=x", *chats])


def test_a_chat_endpoint_gets_system_prompt_and_examples_as_messages():
    prompt = replace(CODEC, system=SYSTEM).prompt("SOLVE 3?", SHOTS)
    endpoint = ChatEndpoint(RolloutConfig(chat_url="http://127.0.0.1:9/v1", chat_model="m"))
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=0)
    body = json.loads(endpoint._body(prompt, sampling, 1, endpoint._dialect))
    turns = (("system", SYSTEM), *SHOTS, ("user", "SOLVE 3?"))
    assert body["messages"] == [{"role": role, "content": text} for role, text in turns]


def test_the_tokenizer_of_a_chat_endpoint_needs_no_template_for_the_system_prompt(tmp_path: Path):
    chats = RolloutConfig(chat_url="http://127.0.0.1:9/v1", chat_model="m")
    model = _saved(tmp_path, ONE_USER)
    codec = load_codec(model, chats, replace(PROMPTS_CONFIG, system=SYSTEM))
    assert codec.decode(codec.prompt("SOLVE 3?", SHOTS).ids).startswith(f"{SYSTEM}\n\nSOLVE 1 + 1?")
    assert load_codec(model, chats, PROMPTS_CONFIG).render("SOLVE 3?") == "SOLVE 3?"


DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
ONE_USER = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"
NO_THOUGHTS = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "system", "shots", "message"),
    [
        (
            DROPS_SYSTEM,
            SYSTEM,
            (),
            r"drops or changes a text of operator\.prompts\.system: 'You are careful\.'",
        ),
        (ONE_USER, SYSTEM, (), r"with the system prompt of operator\.prompts\.system: .*one turn"),
        (ONE_USER, "", SHOTS, r"does not render operator\.prompts\.examples: .*one turn"),
        (
            NO_THOUGHTS,
            "",
            (Turn("user", "q"), Turn("assistant", "<think>hm</think>a")),
            r"drops or changes a text of operator\.prompts\.examples: '<think>hm</think>a'",
        ),
    ],
)
def test_a_template_that_loses_the_system_prompt_or_an_example_is_refused(
    template: str, system: str, shots: tuple[Turn, ...], message: str
):
    codec = _with_template(template + "{% if add_generation_prompt %}A:{% endif %}", system=system)
    with pytest.raises(ValueError, match=message):
        check_prompt(codec, "m", shots)


def test_a_system_prompt_may_hold_the_question_of_the_probe():
    check_prompt(_with_template(CHAT_TEMPLATE, system="Example: What is 17 + 25? 42"), "m", SHOTS)


def test_a_name_without_a_folder_is_a_file_that_comes_with_the_project_unless_one_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (first, *_) = read_examples("short_sums.jsonl")
    assert first == Example(question="Calculate 4 + 9.", answer="4 + 9 = 13. The answer is \\boxed{13}.")
    with pytest.raises(ValueError, match=r"does not exist; with the project come .*short_sums\.jsonl"):
        read_examples("sums.jsonl")
    with pytest.raises(ValueError, match=r"other/short_sums\.jsonl does not exist"):
        read_examples("other/short_sums.jsonl")
    (tmp_path / "short_sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert read_examples("short_sums.jsonl") == (Example(question="1 + 1?", answer="2"),)


def test_examples_are_read_in_order_with_numbers_as_text(tmp_path: Path):
    path = _lines(
        tmp_path,
        '{"question": "1 + 1?", "answer": 2, "source": "x"}',
        "",
        '{"question": " q ", "answer": "a\\n"}',
        '{"question": "q", "answer": "a", "drafts": [" 1", "2"]}',
    )
    assert read_examples(str(path)) == (
        Example("1 + 1?", "2"),
        Example("q", "a"),
        Example("q", "a", drafts=("1", "2")),
    )
    assert read_examples(None) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "1?"}', r"examples\.jsonl line 1: It has no field 'answer'; it has \['question'\]"),
        ('{"question": "1?", "answer": ""}', r"line 1: Its field 'answer' is a missing value\."),
        ("[1]", r"must hold JSON lines"),
        ("no json", r"operator\.prompts\.examples: .* line 1: It is not JSON"),
        ("", r"operator\.prompts\.examples: .* holds no example"),
        (
            '{"question": "1?", "answer": "1", "drafts": "1"}',
            r"line 1: Its field 'drafts' must be a list of at least one text, none empty, got '1'\.",
        ),
        ('{"question": "1?", "answer": "1", "drafts": []}', r"of at least one text, none empty, got \[\]\."),
        (
            '{"question": "1?", "answer": "1", "draft": ["2"]}',
            r"'draft' is not read. Did you mean 'drafts'\?",
        ),
        ('{"question": "1?", "answer": "\\boxed{1}"}', r"control character '\\x08'\. In JSON .*twice"),
        (
            '{"question": "1?", "answer": "1", "drafts": ["1", " "]}',
            r"line 1: Its field 'drafts' must be a list of at least one text, none empty, got \['1', ' '\]\.",
        ),
    ],
)
def test_a_broken_file_of_examples_is_named_with_its_line(tmp_path: Path, line: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_examples(str(_lines(tmp_path, line)))


def test_a_file_of_examples_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"operator\.prompts\.examples: the file nowhere does not exist"):
        read_examples("nowhere")


def _lines(folder: Path, *lines: str) -> Path:
    path = folder / "examples.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _saved(folder: Path, template: str, **arguments: object) -> ModelConfig:
    tiny_model().save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return ModelConfig(path=str(folder), chat_template_kwargs=dict(arguments))
