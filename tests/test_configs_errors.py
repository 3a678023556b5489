"""What an invalid config is told: the nearest key, the choices, one line without names of classes."""

import shlex
from typing import Any

import pytest

from configs.compose import load
from configs.config_errors import ConfigError

NEEDED = ["model.path=x", "data.path=x"]


def _training(*overrides: str) -> Any:
    return load("training", [*NEEDED, *overrides])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("expriment=demo", "experiment"),
        ("sed=1", "seed"),
        ("output_dri=x", "output_dir"),
        ("oprator=pdr", "operator"),
        ("algo.lerning_rate=1", "algo.learning_rate"),
        ("learning_rate=1", "algo.learning_rate"),
        ("schedule=[4,1]", "operator.schedule"),
        ("algo.max_steps=3", "train.max_steps"),
        ("rollout.url=x", "rollout.urls"),
        ("data.pth=x", "data.path"),
        ("model.pth=x", "model.path"),
        ("operator.prompts.slove=x", "operator.prompts.solve"),
        ("operator/promts=default", "operator/prompts"),
        ("rewards.weights.outcme=1", "rewards.weights.outcome"),
        ("+algo.lerning_rate=1", "algo.learning_rate"),
        ("++trian.max_steps=1", "train"),
    ],
)
@pytest.mark.component
def test_an_unknown_key_names_the_nearest_valid_one(override: str, nearest: str):
    with pytest.raises(ConfigError, match=rf"is not an option\. Did you mean '{nearest}(\.\w+)?'\?"):
        _training(override)


@pytest.mark.component
def test_a_key_like_no_other_suggests_nothing_absurd():
    with pytest.raises(ConfigError, match=r"^'qqqqqqqq' is not an option\.$"):
        _training("qqqqqqqq=1")


def test_a_preset_that_was_renamed_is_named_as_it_is_now():
    with pytest.raises(ConfigError, match=r"^There is no data=jsonl; .* Did you mean 'data=file'\?$"):
        _training("data=jsonl")
    with pytest.raises(ConfigError, match=r"data\.source is 'jsonl'; choose one of file, hf"):
        _training("data.source=jsonl")


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("algo.learning_rate=fast", r"algo\.learning_rate"),
        ("algo.num_generations=2.5", r"algo\.num_generations"),
        ("algo.num_generations=", r"algo\.num_generations"),
        ("operator.schedule=[a]", r"operator\.schedule"),
        ("rollout.urls=x", r"rollout\.urls"),
        ("seed=null", "seed"),
        ("rollout.enforce_eager=maybe", r"rollout\.enforce_eager"),
        ("rollout.tensor_parallel_size=two", r"rollout\.tensor_parallel_size"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_option(override: str, option: str):
    with pytest.raises(ConfigError, match=option) as error:
        _training(override)
    assert "\n" not in str(error.value)


@pytest.mark.component
@pytest.mark.parametrize("command", ["training", "evaluation", "job"])
def test_a_missing_mandatory_value_is_named(command: str):
    with pytest.raises(ConfigError, match=r"^model\.path must be set\.$"):
        load(command, ["data.path=x"])
    with pytest.raises(ConfigError, match=r"^data\.path must be set when data\.source is 'file'\.$"):
        load(command, ["model.path=x"])


@pytest.mark.parametrize(
    ("override", "available"),
    [
        ("operator=pdrr", r"adaptive, best_of_n, .*Did you mean 'pdr'\?"),
        (
            "data=csv",
            "aime24, aime25, compositional, dapo17k, deepscaler, file, gsm8k, hf, math500, polaris",
        ),
        ("experiment=x", "demo, family_eval"),
    ],
)
def test_an_unknown_choice_of_a_group_lists_what_there_is(override: str, available: str):
    with pytest.raises(ConfigError, match=f"There is no .*choose one of .*{available}"):
        _training(override)


@pytest.mark.parametrize("command", ["problems", "workers"])
def test_a_command_without_experiments_says_so(command: str):
    with pytest.raises(ConfigError, match=r"^This command takes no experiment, .*Set the options"):
        load(command, ["experiment=demo"])


@pytest.mark.parametrize("override", ["model=null", "a=[1", "seed", "=3"])
def test_what_is_no_override_is_a_config_error(override: str):
    with pytest.raises(ConfigError):
        _training(override)


@pytest.mark.parametrize(
    "value", ["/a/b=c", "/a/[b]/c", "/a/{b}", "/a/(b)", "/a/#b", "/a/~b", "/a&b", "/ü", "/it's=x", '/a"b=c']
)
def test_a_path_that_needs_quotes_is_refused_with_an_override_that_works(value: str):
    with pytest.raises(ConfigError) as caught:
        load("evaluation", ["data.path=x", f"model.path={value}"])
    message = str(caught.value)
    assert f"override model.path={value} cannot be read" in message and "\n" not in message
    (suggested,) = shlex.split(message[message.index("take away: ") + len("take away: ") :])
    assert load("evaluation", ["data.path=x", suggested]).model.path == value


def test_a_home_folder_and_an_override_without_a_value_are_explained():
    with pytest.raises(ConfigError, match=r"~ written out, as it is not expanded"):
        load("evaluation", ["data.path=x", "model.path=~/x"])
    with pytest.raises(ConfigError, match=r"The override 'model' cannot be read; write it as key=value\."):
        load("evaluation", ["data.path=x", "model"])


@pytest.mark.component
def test_an_option_below_a_list_names_the_list():
    with pytest.raises(ConfigError) as error:
        load("evaluation", [*NEEDED, "operators.majority.schedule=[4]"])
    assert str(error.value) == (
        "'operators.majority.schedule' is not an option: 'operators' is a list. Set it as a whole, "
        "operators=[...]."
    )


def test_a_value_of_the_wrong_type_is_one_line_without_names_of_classes():
    with pytest.raises(ConfigError) as error:
        _training("algo.learning_rate=fast")
    said = "algo.learning_rate: Value 'fast' of type 'str' could not be converted to Float"
    assert str(error.value) == said
