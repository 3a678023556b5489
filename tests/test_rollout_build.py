"""From options to an operator: the built-in kinds, and a class of one's own."""

from pathlib import Path

import pytest
from fakes import ScriptedPolicy, roll
from tiny import byte_tokenizer

from configs.compose import load, load_operator
from configs.schema import ModelConfig, OperatorConfig, RolloutConfig
from rollout.build import build_operator, load_tokenizer, policy_settings
from rollout.endpoints.chat import ChatEndpoint
from rollout.operators import OPERATORS
from rollout.records import TRACE

SHORTEST = """
from rollout.operators import Operator
from rollout.records import EMPTY, TRACE, Answers

class Shortest(Operator):
    async def answer(self, policy, rng, num_answers=1):
        traces = await policy.solve([EMPTY] * self.options.schedule[0], role=TRACE, round=0)
        best = min(traces, key=lambda call: len(policy.solution(call).text))
        return Answers(calls=(best,), waited_for=traces)

class NoOperator:
    pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "operator_of_a_user.py").write_text(SHORTEST)
    monkeypatch.syspath_prepend(tmp_path)
    return "operator_of_a_user"


@pytest.mark.component
def test_each_kind_has_a_file_and_builds():
    own = load("evaluation", ["model.path=x", "data.path=x"]).operator
    for kind in OPERATORS:
        built = build_operator(load_operator(kind, own))
        assert type(built) is OPERATORS[kind]
        assert built.name == kind


def test_a_class_of_ones_own_is_an_operator_like_any_other(own_module: str):
    built = build_operator(OperatorConfig(name="mine", kind=f"{own_module}:Shortest", schedule=[3]))
    texts = iter(["<think>a</think>long \\boxed{1}", "\\boxed{2}", "<think>b</think>longer \\boxed{3}"])
    rollout = roll(ScriptedPolicy(script=lambda request, rng: next(texts)), built)
    assert (rollout.operator, rollout.answers) == ("mine", (1,))
    assert [call.role for call in rollout.calls] == [TRACE] * 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_module_here:Shortest", r"'no_such_module_here:Shortest', which does not import: No module"),
        ("operator_of_a_user:Longest", r"does not import: .*Longest.*Write it as package\.module:Class"),
        ("operator_of_a_user:NoOperator", r"no subclass of rollout\.operators\.Operator"),
    ],
)
def test_a_kind_that_is_no_operator_is_refused_by_name(own_module: str, kind: str, message: str):
    with pytest.raises(ValueError, match=message):
        build_operator(OperatorConfig(name="mine", kind=kind, schedule=[3]))


def test_thinking_is_limited_only_where_a_limit_is_set():
    operator = load("evaluation", ["model.path=x", "data.path=x"]).operator
    sampler = ScriptedPolicy()
    free = policy_settings(operator, RolloutConfig(), sampler, byte_tokenizer())
    assert free.limit is None and free.sampling.max_tokens == 2048
    config = RolloutConfig(thinking_tokens=100, answer_tokens=7)
    limit = policy_settings(operator, config, sampler, byte_tokenizer()).limit
    assert limit is not None
    assert (limit.thinking_tokens, limit.answer_tokens) == (100, 7)
    tokenizer = byte_tokenizer()
    assert limit.close_ids == (tokenizer.convert_tokens_to_ids("</think>"),)
    assert tokenizer.decode(limit.force_ids) == operator.thinking.force
    assert limit.is_open(tuple(tokenizer("<think>and on").input_ids))
    assert not limit.is_open(tuple(tokenizer("no thinking at all").input_ids))


def test_a_template_that_opens_thinking_leaves_unclosed_completions_without_solution():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"{tokenizer.chat_template}<think>\n"
    operator = load("evaluation", ["model.path=x", "data.path=x"]).operator
    marks = policy_settings(operator, RolloutConfig(), ScriptedPolicy(), tokenizer).marks
    assert marks.opened_by_prompt
    chatting = RolloutConfig(chat_url="http://127.0.0.1:9/v1", chat_model="m")
    chat = policy_settings(operator, chatting, ChatEndpoint(chatting), tokenizer)
    assert not chat.marks.opened_by_prompt  # the template is not ours
    assert not policy_settings(
        operator, RolloutConfig(), ScriptedPolicy(), byte_tokenizer()
    ).marks.opened_by_prompt


@pytest.mark.parametrize("path", ["outputs/nothing", "./nothing", "/no/where", "~/model", "a/b/c", "nothing"])
def test_a_model_folder_that_does_not_exist_is_not_looked_for_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.path: the folder .* does not exist"):
        load_tokenizer(ModelConfig(path=path))
