"""What makes two rollouts comparable: the model by its files, operators and verifier by their options."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import EvenIsCorrect, ScriptedPolicy, problem, settings
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer

from configs.compose import load, load_operator
from configs.schema import WITHOUT_EFFECT, EvaluationConfig, ModelConfig, RolloutConfig
from rollout.build import build_operator
from rollout.evaluation.identity import _READ_BY, Identity, evaluation_identity
from rollout.evaluation.model_files import PROBE_BYTES, served_model
from rollout.policy import Policy

CHAT = RolloutConfig(chat_url="http://127.0.0.1:9", chat_model="some-model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with one tensor that is larger than its probes."""
    path = tmp_path / "model"
    byte_tokenizer().save_pretrained(path)
    (path / "config.json").write_text('{"model_type": "qwen3"}')
    tensors = {"a": torch.zeros(64, 64), "b": torch.zeros(4), "large": torch.zeros(5 * PROBE_BYTES)}
    save_file(tensors, path / "model.safetensors")
    return path


def _model(folder: Path, rollout: RolloutConfig | None = None) -> dict[str, str]:
    return served_model(ModelConfig(path=str(folder)), rollout or RolloutConfig())


def _add_one(folder: Path, name: str, place: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[place] += 1
    save_file(tensors, folder / "model.safetensors")


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda folder: _add_one(folder, "a", 17), "weights"),
        (lambda folder: _add_one(folder, "b", 3), "weights"),
        (lambda folder: _add_one(folder, "large", 0), "weights"),
        (lambda folder: _add_one(folder, "large", int(2.5 * PROBE_BYTES)), "weights"),
        (lambda folder: _add_one(folder, "large", 5 * PROBE_BYTES - 1), "weights"),
        (lambda folder: _write(folder, "config.json", '{"model_type": "qwen2"}'), "configuration"),
        (lambda folder: _write(folder, "generation_config.json", '{"top_k": 20}'), "configuration"),
        (lambda folder: _write(folder, "chat_template.jinja", "{{ messages }}"), "tokenizer"),
    ],
)
def test_a_change_in_the_model_folder_changes_the_part_that_it_is_in(
    folder: Path, change: Callable[[Path], None], part: str
):
    before = _model(folder)
    change(folder)
    now = _model(folder)
    assert before.keys() == now.keys()
    assert {name for name in now if now[name] != before[name]} == {f"{part} of model.path"}


def test_a_copy_of_a_model_is_that_model_whatever_its_path_dates_and_cards(folder: Path, tmp_path: Path):
    before = _model(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    for path in moved.iterdir():
        path.write_bytes(path.read_bytes())
    (moved / "README.md").write_text("a card")
    (moved / "coldstart.json").write_text("{}")
    assert _model(moved) == before


def test_a_chat_endpoint_is_its_models_name_and_the_tokenizer_that_counts(folder: Path):
    assert _model(folder, CHAT) == {"tokenizer of model.path": _model(folder)["tokenizer of model.path"]}


def test_a_weight_file_that_is_none_is_named(folder: Path):
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all.")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        _model(folder)


def test_a_model_on_the_hub_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = tmp_path / "snapshots" / "0123abc" / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(cached))
    assert _model(Path("owner/name")) == {"revision of model.path": "owner/name@0123abc"}

    def unreachable(name: str, file: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"model\.path is 'owner/name', .* no network"):
        _model(Path("owner/name"))


def _identity(*overrides: str, operators: tuple[str, ...] = ("trace", "pdr")) -> Identity:
    config: EvaluationConfig = load("evaluation", ["model.path=m", "data.path=d", *overrides])
    return evaluation_identity(
        seed=config.seed,
        model={"weights of model.path": "aa"},
        operators=[load_operator(name, config.operator) for name in operators],
        base=config.operator,
        rollout=config.rollout,
        rewards=config.rewards,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "seed was 0 and is 1"),
        ("rollout.vllm_args.quantization=fp8", 'rollout.vllm_args was {} and is {"quantization": "fp8"}'),
        ("rollout.temperature=0.5", "rollout.temperature was 1.0 and is 0.5"),
        ("rollout.max_completion_length=64", "rollout.max_completion_length was 2048 and is 64"),
        ("rewards.forms=[tag]", 'rewards.forms was [] and is ["tag"]'),
        ("rewards.limit_seconds=1", "rewards.limit_seconds was 3.0 and is 1.0"),
        ("operator.schedule=[8,1]", "operators.pdr.schedule was [4, 1] and is [8, 1]"),
        ("operator.distiller=all", "operators.pdr.distiller was 'shared_topk' and is 'all'"),
        ("operator.thinking.open=THINK", "operator.thinking.open was '<think>' and is 'THINK'"),
    ],
)
def test_an_option_that_decides_a_rollout_is_named_with_both_values(override: str, message: str):
    assert _identity().differences(_identity(override)) == [message]


def test_other_texts_before_the_question_are_another_evaluation_and_none_are_as_before(tmp_path: Path):
    plain = _identity()
    assert not {"operator.prompts.system", "operator.prompts.examples"} & plain.shared.keys()
    system = _identity("operator.prompts.system=Careful.")
    assert plain.differences(system) == ["operator.prompts.system was not set and is 'Careful.'"]
    file, copy = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (file, copy):
        path.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    shown = _identity(f"operator.prompts.examples={file}")
    assert len(plain.differences(shown)) == 1
    assert shown.differences(_identity(f"operator.prompts.examples={copy}")) == []
    file.write_text('{"question": "1 + 1?", "answer": "3"}\n')
    (said,) = shown.differences(_identity(f"operator.prompts.examples={file}"))
    assert said.startswith("operator.prompts.examples was") and '"3"' in said
    copy.write_text('{"question": "1 + 1?", "answer": "2", "drafts": ["3"]}\n')
    assert len(shown.differences(_identity(f"operator.prompts.examples={copy}"))) == 1


def test_other_arguments_of_the_chat_template_are_another_model_and_none_are_as_before(folder: Path):
    def served(**arguments: object) -> dict[str, str]:
        return served_model(ModelConfig(path=str(folder), chat_template_kwargs=arguments), RolloutConfig())

    assert served(b=1, a=2) == {**_model(folder), "model.chat_template_kwargs": '{"a": 2, "b": 1}'}
    assert served() == _model(folder)


def test_a_changed_prompt_is_shown_where_it_changed():
    base = _identity().shared["operator.prompts.refine"]
    longer = "x" * 200 + base
    now = replace(
        _identity(), shared={**_identity().shared, "operator.prompts.refine": longer + " Be brief."}
    )
    before = replace(_identity(), shared={**_identity().shared, "operator.prompts.refine": longer})
    (said,) = before.differences(now)
    assert said.startswith("operator.prompts.refine was '...") and said.endswith(" Be brief.'")


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "samples=7",
        "data.limit=3",
        "data.path=another.jsonl",
        "rollout.num_workers=2",
        "rollout.max_concurrency=3",
        "rollout.samples_per_request=2",
        "rollout.tensor_parallel_size=2",
        "rollout.urls=[http://127.0.0.1:9]",
        "rollout.max_retries=0",
        "rewards.num_workers=1",
        "rewards.weights.format=1",
        "operator.drafts=[2,4]",
        "model.gradient_checkpointing=full",
    ],
)
def test_an_option_that_cannot_change_a_rollout_is_no_part_of_the_identity(override: str):
    assert _identity().differences(_identity(override)) == []


def test_the_address_of_a_chat_endpoint_is_no_part_of_the_identity_and_its_model_is():
    chat = ("rollout.chat_url=http://a", "rollout.chat_model=m")
    assert _identity(*chat).differences(_identity("rollout.chat_url=http://b", chat[1])) == []
    other = _identity(chat[0], "rollout.chat_model=n")
    assert _identity(*chat).differences(other) == ["rollout.chat_model was 'm' and is 'n'"]


def test_every_other_option_of_the_sampling_is_part_of_it():
    """An option that is added later is so, too, until it is listed as without effect."""
    names = {name.removeprefix("rollout.") for name in _identity().shared if name.startswith("rollout.")}
    assert names == set(asdict(RolloutConfig())) - set(WITHOUT_EFFECT) - {"chat_url"}


def test_the_code_of_an_operator_of_ones_own_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = (
        "from rollout.operators import Trace\n\nclass Own(Trace):\n    pass\n\nasync def keep(context): ...\n"
    )
    (tmp_path / "own_operator.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("operator.kind=own_operator:Own", "operator.distiller=own_operator:keep")
    before = _identity(*options, operators=("pdr",))
    (tmp_path / "own_operator.py").write_text(source + "# changed\n")
    said = before.differences(_identity(*options, operators=("pdr",)))
    assert [each.partition(" was ")[0] for each in said] == [
        "operators.pdr.code of distiller",
        "operators.pdr.code of kind",
    ]


class _Watched:
    """Options that remember which of them were read."""

    def __init__(self, options: Any, read: set[str]) -> None:
        self._options, self._read = options, read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._options, name)


@pytest.mark.parametrize("kind", sorted(_READ_BY))
def test_an_operator_reads_no_option_that_its_identity_leaves_out(kind: str):
    fields = {"kappa": "workspace_tokens", "name": "distiller"}
    operator = build_operator(
        load_operator(kind, load("evaluation", ["model.path=m", "data.path=d"]).operator)
    )
    read: set[str] = set()
    distil: set[str] = set()
    options = operator.options
    parts = {"distil": options.distil, "selection": options.selection}
    watched = replace(options, **{name: _Watched(part, distil) for name, part in parts.items()})
    operator.options = _Watched(watched, read)  # pyright: ignore[reportAttributeAccessIssue]
    policy = Policy(problem(), settings(ScriptedPolicy()), EvenIsCorrect(), 0)
    asyncio.run(operator.answer(policy, random.Random(0)))
    used = (read - set(parts)) | {fields.get(name, name) for name in distil}
    assert used <= set(_READ_BY[kind])
