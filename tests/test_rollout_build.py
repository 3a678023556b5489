"""From options to an operator: the built-in kinds, and a class of one's own."""

import asyncio
import json
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
from conftest import REPO
from fakes import CODEC, PROMPTS, PROMPTS_CONFIG, EvenIsCorrect, ScriptedPolicy, operator, problem, roll
from tiny import byte_tokenizer, tiny_model

from configs.compose import load, load_operator
from configs.schema import CollectConfig, ModelConfig, OperatorConfig, RoleConfig, RolesConfig, RolloutConfig
from rollout import records
from rollout.build import Ranges, build_operator, policy_settings
from rollout.codec import Codec
from rollout.collection.filters import group_filter
from rollout.collection.groups import group_rollout
from rollout.endpoints.chat import ChatEndpoint
from rollout.operators import run_operator
from rollout.records import TRACE
from rollout.siblings import OPERATORS
from rollout.tokenizer import load_codec, load_tokenizer

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

async def takes_two(context, num):
    return []

def waits_for_nothing(context):
    return []

async def too_few(context):
    return []

async def no_list(context):
    return "drafts"

async def too_long(context):
    return [Workspace(text="x" * 200, parents=())] * context.num

from rollout.records import Workspace
from rollout.workspace import oracle as knows
"""
PAGE_BLOCK = re.compile(r"```python\n# shortest\.py.*?\n(.*?)```", re.DOTALL)


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
        ("operator_of_a_user:NoOperator", r"not a subclass of rollout\.operators\.Operator"),
    ],
)
def test_a_kind_that_is_no_operator_is_refused_by_name(own_module: str, kind: str, message: str):
    with pytest.raises(ValueError, match=message):
        build_operator(OperatorConfig(name="mine", kind=kind, schedule=[3]))


@dataclass(frozen=True, slots=True)
class _NoReward:
    total: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


@pytest.fixture
def readme_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that one starts in, with the ``shortest.py`` of docs/operators.md."""
    blocks = PAGE_BLOCK.findall((REPO / "docs" / "operators.md").read_text())
    assert len(blocks) == 4
    (tmp_path / "shortest.py").write_text("".join(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as python -m does
    monkeypatch.delitem(sys.modules, "shortest", raising=False)
    return tmp_path


def _of_lengths(*lengths: int) -> ScriptedPolicy:
    """Drafts of these lengths, in order; everything else is short."""
    left = iter(lengths)

    def script(request, rng):
        number = next(left) if request.kind == "SOLVE" else 0
        return f"<think>hm</think>{'x' * number} \\boxed{{{number}}}"

    return ScriptedPolicy(script=script)


@pytest.mark.parametrize("name", ["shortest_k", "keep_shortest"])
def test_the_readmes_distiller_keeps_the_shortest_usable_drafts(readme_folder: Path, name: str):
    overrides = ["model.path=x", "data.path=x", f"operator.distiller=shortest:{name}", "operator.top_k=2"]
    built = build_operator(load("evaluation", overrides).operator)
    policy = _of_lengths(30, 10, 40, 20)
    rollout = roll(policy, built)
    (refine,) = policy.of("REFINE")
    assert re.findall(r"boxed\{(\d+)\}", refine.prompt) == ["10", "20"]
    assert rollout.calls[rollout.answers[0]].parents == (1, 3)
    assert rollout.counts["workspace/truncated"] == 0


def test_the_readmes_operator_answers_with_the_shortest_draft(readme_folder: Path):
    built = build_operator(OperatorConfig(name="mine", kind="shortest:Shortest", schedule=[3]))
    assert roll(_of_lengths(30, 10, 20), built).answers == (1,)


def test_the_readmes_second_operator_writes_a_group_of_answers_that_read_the_shortest_draft(
    readme_folder: Path,
):
    config = OperatorConfig(name="mine", kind="shortest:RefinedShortest", schedule=[3])
    policy = _of_lengths(30, 10, 20)
    rollout = roll(policy, build_operator(config), num_answers=4)
    (refine,) = policy.of("REFINE")
    assert refine.n == 4 and re.findall(r"boxed\{(\d+)\}", refine.prompt) == ["10"]
    (group,) = group_rollout(rollout, lambda calls, verdicts, drafts: [_NoReward()] * len(calls))
    assert len(group.samples) == 4


def test_the_readmes_filter_drops_groups_of_long_completions(readme_folder: Path):
    keep = group_filter(CollectConfig(filter="shortest:not_too_long"))
    for length, reason in ((10, None), (200, "too_long")):
        rollout = roll(_of_lengths(*[length] * 4), operator((1,), name="trace"), num_answers=4)
        (group,) = group_rollout(rollout, lambda calls, verdicts, drafts: [_NoReward()] * len(calls))
        assert keep.reason(group, rollout) == reason


def test_the_readmes_distiller_declares_what_a_workspace_holds(readme_folder: Path):
    config = OperatorConfig(schedule=[4, 1], distiller="shortest:shortest_k", top_k=3)
    stages = build_operator(config).calls(8)
    assert [(stage.role, stage.number, stage.solutions) for stage in stages] == [
        ("draft", 4, 0),
        ("refine", 8, 3),
    ]
    assert (stages[-1].contexts, stages[-1].per_context) == (1, 8)


def test_training_may_draw_a_distiller_of_ones_own(readme_folder: Path):
    overrides = ["model.path=x", "data.path=x", "operator.distillers=[shortest:shortest_k]"]
    config = load("training", overrides).operator
    drawn = Ranges(distillers=tuple(config.distillers)).draw(operator((2, 1)), random.Random(0))
    policy = _of_lengths(20, 10)
    roll(policy, drawn, num_answers=4)
    assert [request.n for request in policy.of("REFINE")] == [4]
    assert re.findall(r"boxed\{(\d+)\}", policy.of("REFINE")[0].prompt) == ["10", "20"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:f", r"'no_such_module_here:f', which does not import: No module"),
        ("operator_of_a_user:f", r"does not import: .*'f'.*Write it as package\.module:function"),
        ("operator_of_a_user:NoOperator", r"not a distiller\. Write it as async def NoOperator\(context"),
        ("operator_of_a_user:takes_two", r"'operator_of_a_user:takes_two', which is not a distiller"),
        ("operator_of_a_user:waits_for_nothing", r"which is not a distiller\. Write it as async def"),
        # Training refuses the oracle by its name.
        ("operator_of_a_user:knows", r"which is the built-in oracle\. Write operator\.distillers?=oracle"),
        ("rollout.workspace:oracle", r"which is the built-in oracle"),
    ],
)
def test_what_is_no_distiller_is_refused_before_anything_runs(own_module: str, name: str, message: str):
    with pytest.raises(ValueError, match=rf"operator\.distiller is .*{message}"):
        build_operator(OperatorConfig(distiller=name))
    with pytest.raises(ValueError, match=rf"operator\.distillers is .*{message}"):
        Ranges(distillers=("all", name))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", r"operator_of_a_user:too_few returned 0 workspaces where context\.num asks for 1"),
        ("no_list", r"operator_of_a_user:no_list must return a list of Workspace, got 'drafts'"),
        ("too_long", r"a workspace of 200 tokens, the bound is 100 .*rollout\.workspace\.paste"),
    ],
)
def test_a_distiller_that_returns_something_else_ends_the_rollout(
    own_module: str, function: str, message: str
):
    config = OperatorConfig(distiller=f"{own_module}:{function}", workspace_tokens=100)
    assert CODEC.count("x" * 200) == 200
    with pytest.raises(ValueError, match=message):
        roll(ScriptedPolicy(), build_operator(config))


def test_thinking_is_limited_only_where_a_limit_is_set():
    operator = load("evaluation", ["model.path=x", "data.path=x"]).operator
    sampler = ScriptedPolicy()
    free = policy_settings(operator, RolloutConfig(), sampler, CODEC)
    assert free.limit is None and free.sampling.max_tokens == 2048
    config = RolloutConfig(thinking_tokens=100, answer_tokens=7)
    limit = policy_settings(operator, config, sampler, CODEC).limit
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
    codec = Codec(tokenizer=tokenizer)
    marks = policy_settings(operator, RolloutConfig(), ScriptedPolicy(), codec).marks
    assert marks.opened_by_prompt
    chatting = RolloutConfig(chat_url="http://127.0.0.1:9/v1", chat_model="m")
    chat = policy_settings(operator, chatting, ChatEndpoint(chatting), codec)
    assert not chat.marks.opened_by_prompt  # the template is not ours
    assert not policy_settings(operator, RolloutConfig(), ScriptedPolicy(), CODEC).marks.opened_by_prompt


@pytest.mark.parametrize("path", ["outputs/nothing", "./nothing", "/no/where", "~/model", "a/b/c", "nothing"])
def test_a_model_folder_that_does_not_exist_is_not_looked_for_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.path: the folder .* does not exist"):
        load_tokenizer(ModelConfig(path=path))


@pytest.mark.parametrize(
    ("file", "listed", "stops"),
    [
        ("generation_config.json", [1, 2, 4], (2, 4)),
        ("generation_config.json", 2, (2,)),
        ("generation_config.json", 1, ()),  # the tokenizer's own end, at which every engine stops
        ("config.json", [2, 1], (2,)),
    ],
)
def test_a_call_ends_at_every_id_that_the_models_files_list(tmp_path: Path, file: str, listed, stops):
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    generation = tmp_path / "generation_config.json"
    if file == "config.json":
        generation.unlink()
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | {"eos_token_id": listed}))
    codec = load_codec(ModelConfig(path=str(tmp_path)), RolloutConfig(), PROMPTS_CONFIG)
    assert codec.stop_ids == stops
    operator = load("evaluation", ["model.path=x", "data.path=x"]).operator
    settings = policy_settings(operator, RolloutConfig(), ScriptedPolicy(), codec)
    assert settings.sampling.stop_token_ids == stops
    assert codec.end_ids == {0, 1, *stops}


def test_a_tokenizer_without_a_model_lists_no_further_ends(tmp_path: Path):
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_codec(ModelConfig(path=str(tmp_path)), RolloutConfig(), PROMPTS_CONFIG).stop_ids == ()


def test_a_chat_endpoint_is_asked_for_no_stop_ids_and_its_tokenizer_needs_no_usable_template(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "no question"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    chatting = RolloutConfig(chat_url="http://127.0.0.1:9/v1", chat_model="m")
    assert load_codec(ModelConfig(path=str(tmp_path)), chatting, PROMPTS_CONFIG).stop_ids == ()


@pytest.mark.parametrize("beside", ["adapter_model.safetensors", "config.json"])
def test_a_lora_adapter_is_no_model(tmp_path: Path, beside: str):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / beside).write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.path is .* holds a LoRA adapter .*merged") as caught:
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert "\n" not in str(caught.value)
    (tmp_path / "adapter_config.json").unlink()
    load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_each_role_is_sampled_as_its_own_options_say_and_the_others_as_the_runs():
    operator = load("evaluation", ["model.path=x", "data.path=x"]).operator
    roles = RolesConfig(
        draft=RoleConfig(temperature=1.2, thinking_tokens=9), verify=RoleConfig(temperature=0.0, top_p=0.5)
    )
    config = RolloutConfig(temperature=0.8, max_completion_length=50, answer_tokens=7, roles=roles)
    sampler = ScriptedPolicy()
    settings = replace(policy_settings(operator, config, sampler, CODEC), prompts=PROMPTS)
    pdr = build_operator(replace(operator, schedule=[3, 1], top_k=1))
    asyncio.run(run_operator(problem(), pdr, settings, EvenIsCorrect(), seed=0))
    asked = {(each.kind, each.sampling.temperature, each.sampling.top_p) for each in sampler.requests}
    assert asked == {("SOLVE", 1.2, 1.0), ("VERIFY", 0.0, 0.5), ("REFINE", 0.8, 1.0)}
    limit = settings.of("draft").limit
    assert limit is not None and (limit.thinking_tokens, limit.answer_tokens) == (9, 7)
    assert settings.of("refine").limit is None
    assert (config.call_tokens_of("draft"), config.call_tokens_of("refine"), config.call_tokens) == (
        16,
        50,
        50,
    )


def test_every_role_of_calls_has_options():
    named = {value for name, value in vars(records).items() if name.isupper() and isinstance(value, str)}
    # Names of policies, and the role of a group of amortised answers, are no roles of calls.
    others = {records.AMORTISE, records.OWN, records.ENDPOINT, records.REFERENCE}
    assert {item.name for item in fields(RolesConfig)} == named - others
