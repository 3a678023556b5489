"""Composing configs: experiments, groups, open tables, operators beside the run's own."""

from dataclasses import asdict, is_dataclass
from typing import Any

import pytest
import yaml
from conftest import REPO
from omegaconf import OmegaConf

from configs import schema
from configs.compose import load, load_operator, with_options
from configs.config_errors import ConfigError
from configs.open_tables import open_tables
from configs.reference import option_groups
from configs.schema import SCHEMAS
from configs.schema.algo import LOSS_TYPES
from configs.schema.operator import KINDS
from configs.schema.vllm_args import vllm_arguments

CONFIGS = REPO / "configs"


NEEDED = ["model.path=x", "data.path=x"]


COMMANDS = ("training", "evaluation", "job", "study")


GROUPS = {
    group: sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    for group in ("data", "operator", "algo", "rewards", "model", "rollout", "train", "experiment")
}


EVALUATIONS = {"paper_eval", "family_eval", "family_small"}
"""Experiments of ``python -m rollout``; the others are of ``python -m train``, but for studies."""


STUDIES = {"paper_small", "compositional_study", "amortise_study"}
"""Experiments of ``python -m train.study``."""


ALSO_NEEDED = {
    ("data", "hf"): ["data.name=owner/set"],
    ("data", "reasoning_gym"): [],
    ("data", "compositional"): [],
    ("rewards", "custom"): ["rewards.path=package.module:function"],
    ("rewards", "judge"): ["rewards.judge.url=http://localhost:8000/v1", "rewards.judge.model=m"],
    ("operator", "two_policy"): ["rollout.draft_url=http://a", "rollout.draft_model=m"],
}
"""What a group file leaves to the command line, besides the paths in NEEDED."""


def _training(*overrides: str) -> Any:
    return load("training", [*NEEDED, *overrides])


@pytest.mark.parametrize("name", GROUPS["experiment"])
@pytest.mark.component
def test_every_experiment_composes_and_passes_its_checks(name: str):
    if name in EVALUATIONS:
        config = load("evaluation", [*NEEDED, f"experiment={name}"])
        assert isinstance(config, schema.EvaluationConfig)
    elif name in STUDIES:
        study = load("study", [f"experiment={name}"])
        load("training", ["model.path=x", *study.training])
        load("evaluation", ["model.path=x", *study.evaluation])
        for arm in study.arms:
            load("training", ["model.path=x", *study.training, *arm.overrides])
    else:
        config = load("training", ["model.path=x", f"experiment={name}"])
        assert isinstance(config, schema.TrainingConfig)


@pytest.mark.parametrize("thinking", [8192, 16384, 24576])
@pytest.mark.parametrize("schedule", ["[8,1]", "[16,8,1]", "[16,8,4,1]"])
@pytest.mark.parametrize("top_k", [2, 4])
@pytest.mark.component
def test_the_papers_whole_protocol_fits_one_experiment(thinking: int, schedule: str, top_k: int):
    sweep = [
        f"rollout.thinking_tokens={thinking}",
        f"operator.schedule={schedule}",
        f"operator.top_k={top_k}",
    ]
    config = load("evaluation", [*NEEDED, "experiment=paper_eval", *sweep])
    assert config.samples == 16
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.answer_tokens) == (1, 1, 2048)
    # Every run of the sweep has a folder of its own.
    name = f"outputs/paper_eval/x/thinking_{thinking}/schedule_{schedule.replace(',', ', ')}/top_{top_k}"
    assert config.output_dir == name


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, names in GROUPS.items() if group != "experiment" for name in names],
)
@pytest.mark.component
def test_every_group_file_composes_and_its_values_arrive(group: str, name: str):
    command = "evaluation" if group == "operator" else "training"
    config = load(command, [*NEEDED, f"{group}={name}", *ALSO_NEEDED.get((group, name), [])])
    text = (CONFIGS / group / f"{name}.yaml").read_text()
    written = yaml.safe_load(text) or {}
    for part, values in (written if "@package _global_" in text else {group: written}).items():
        for key, value in values.items():
            if key != "defaults":
                composed = getattr(getattr(config, part), key)
                arrived = asdict(composed) if is_dataclass(composed) else composed
                # A table's other keys keep their defaults.
                assert (arrived | value if isinstance(value, dict) else value) == arrived


def test_groups_have_files():
    assert {group for group, names in GROUPS.items() if not names} <= {"experiment"}
    assert set(GROUPS["operator"]) >= set(KINDS)
    assert set(GROUPS["algo"]) == set(LOSS_TYPES)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.component
def test_yaml_holds_no_key_that_the_schema_lacks(command: str):
    config = load(command, ["experiment=paper_small"] if command == "study" else NEEDED)
    assert config == OmegaConf.to_object(OmegaConf.structured(config))


def test_a_command_line_wins_over_an_experiment_and_an_experiment_over_a_group():
    config = load("training", ["model.path=x", "data.path=x", "algo=grpo", "algo.sft_coef=0.3"])
    assert (config.algo.loss_type, config.algo.sft_coef) == ("grpo", 0.3)


@pytest.mark.parametrize(("written", "read"), [("true", "true"), ("False", "false"), ("auto", "auto")])
def test_graphs_are_chosen_by_true_false_or_auto(written: str, read: str):
    assert _training(f"rollout.enforce_eager={written}").rollout.enforce_eager == read


def test_fp8_rollouts_are_corrected_by_truncated_importance_sampling():
    config = _training("rollout=fp8")
    assert config.rollout.vllm_args == {"quantization": "fp8"}
    algo = config.algo
    assert (algo.vllm_importance_sampling_correction, algo.vllm_importance_sampling_mode) == (
        True,
        "token_truncate",
    )


def test_options_of_vllm_become_words_of_its_command_line():
    args = {"kv_cache_dtype": "fp8", "x": 3, "on": True, "off": False, "many": [1, 2], "table": {"a": "b"}}
    assert vllm_arguments(args) == [
        *("--kv-cache-dtype", "fp8", "--x", "3", "--on", "--no-off", "--many", "1", "2"),
        *("--table", '{"a": "b"}'),
    ]


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_an_open_table_takes_new_keys_with_or_without_a_sign(sign: str):
    config = _training(f"{sign}data.task_options.min_terms=3")
    assert config.data.task_options == {"min_terms": 3}
    whole = _training(f"{sign}data.task_options={{a: {{b: 1}}}}")
    assert whole.data.task_options == {"a": {"b": 1}}


def test_an_open_table_takes_known_and_nested_keys_and_deletions():
    chosen = ["data=reasoning_gym", "data.task_options.min_terms=2", "data.task_options.a.b=[1,2]"]
    config = _training(*chosen, "~data.task_options.max_digits")
    assert config.data.task_options == {"min_terms": 2, "max_terms": 5, "min_digits": 1, "a": {"b": [1, 2]}}


@pytest.mark.parametrize("config_name", SCHEMAS)
def test_every_option_that_is_a_table_without_schema_is_open_and_no_other(config_name: str):
    tables = {
        option.name
        for group in option_groups(SCHEMAS[config_name])
        for option in group.options
        if option.type.startswith("dict")
    }
    assert set(open_tables(SCHEMAS[config_name])) == tables


@pytest.mark.component
def test_a_compared_operator_differs_from_the_runs_own_in_nothing_but_the_operator():
    own = _training(
        "operator.workspace_tokens=99", "operator.thinking.open='[T]'", "operator.top_k=2"
    ).operator
    assert load_operator("pdr", own) is own
    trace, sr = load_operator("trace", own), load_operator("sr", own)
    assert (trace.name, trace.schedule, sr.name, sr.schedule) == ("trace", [1], "sr", [1, 1, 1])
    for other in (trace, sr):
        assert (other.workspace_tokens, other.thinking.open, other.top_k) == (99, "[T]", 2)
        assert other.prompts == own.prompts
    assert own.schedule == [4, 1]
    with pytest.raises(ConfigError, match="nope"):
        load_operator("nope", own)


def test_another_policy_for_the_drafts_belongs_to_the_operator_that_names_it():
    base = _training("operator=two_policy", "rollout.draft_url=http://a", "rollout.draft_model=m").operator
    assert base.draft_policy == load_operator("two_policy", base).draft_policy == "endpoint"
    assert load_operator("pdr", base).draft_policy == "own"
    own = load("evaluation", NEEDED).operator
    assert load_operator("two_policy", own).draft_policy == "endpoint"


def test_options_given_from_python_change_their_part_alone_and_are_checked():
    base = schema.RolloutConfig(top_p=0.9)
    changed = with_options(base, {"urls": ("http://a",), "temperature": 1}, "rollout")
    assert asdict(changed) == {**asdict(base), "urls": ["http://a"], "temperature": 1.0}
    assert with_options(base, {}, "rollout") == base == schema.RolloutConfig(top_p=0.9)
    for options, message in (
        ({"temprature": 1}, "'temprature' is not an option of rollout. Did you mean 'temperature'?"),
        ({"temperature": "hot"}, "rollout.temperature is 'hot': Value 'hot' of type 'str' could not"),
        ({"temperature": -1}, "rollout.temperature must be at least 0, got -1"),
    ):
        with pytest.raises(ConfigError) as error:
            with_options(base, options, "rollout")
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("command", ["training", "evaluation", "workers"])
def test_workers_round_logits_as_the_trainer_does(command: str):
    needed = [*NEEDED, "rollout.port=1234"] if command != "workers" else ["model.path=x", "rollout.port=1234"]
    for in_fp32 in (False, True):
        config = load(command, [*needed, f"model.cast_lm_head_to_fp32={str(in_fp32).lower()}"])
        assert config.rollout.cast_lm_head_to_fp32 == in_fp32
