"""The reader of option docs, and ``--help``, which shows what it reads."""

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING, OmegaConf

from configs.help_text import WIDTH, help_text
from configs.reference import REQUIRED, Option, first_sentence, option_groups
from configs.schema import (
    EvaluationConfig,
    JobConfig,
    ProblemsConfig,
    StudyConfig,
    TrainingConfig,
    WorkersConfig,
)

COMMANDS = (EvaluationConfig, JobConfig, ProblemsConfig, StudyConfig, TrainingConfig, WorkersConfig)


@dataclass(kw_only=True)
class Inner:
    """The inner part. More of it."""

    rate: float | None = None
    """Rate of the part,
    e.g. 0.5. A second sentence."""

    names: list[str] = field(default_factory=lambda: ["a", "b"])


@dataclass(kw_only=True)
class Outer:
    """The whole."""

    path: str = MISSING
    """Where it is."""

    inner: Inner = field(default_factory=Inner)
    last: str = ""


@dataclass(kw_only=True)
class Derived(Outer):
    """A whole with another meaning of last."""

    last: str = "x"
    """The last one."""


def test_options_are_read_with_name_type_default_and_text():
    own, inner = option_groups(Outer)
    assert (own.name, own.text) == ("", "The whole.")
    assert own.options == (
        Option(name="path", type="str", default=REQUIRED, text="Where it is."),
        Option(name="last", type="str", default='""', text=""),
    )
    assert (inner.name, inner.text) == ("inner", "The inner part. More of it.")
    assert inner.options == (
        Option(
            name="inner.rate",
            type="float | None",
            default="null",
            text="Rate of the part, e.g. 0.5. A second sentence.",
        ),
        Option(name="inner.names", type="list[str]", default="[a,b]", text=""),
    )
    assert inner.options[0].summary == "Rate of the part, e.g. 0.5."


def test_texts_are_inherited_and_a_subclass_has_the_last_word():
    texts = {option.name: option.text for option in next(option_groups(Derived)).options}
    assert texts == {"path": "Where it is.", "last": "The last one."}


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("Without an end", "Without an end"),
        ("At 0.5 or i.e. half. B", "At 0.5 or i.e. half."),
    ],
)
def test_the_first_sentence_ends_at_a_full_stop_that_no_abbreviation_has(text: str, first: str):
    assert first_sentence(text) == first


@pytest.mark.parametrize("schema", COMMANDS)
def test_every_option_of_every_command_has_a_text(schema: type):
    options = [option for group in option_groups(schema) for option in group.options]
    assert options
    assert [option.name for option in options if not option.text] == []


@pytest.mark.parametrize("schema", COMMANDS)
def test_help_names_every_option_with_its_value_within_the_width(schema: type):
    config = OmegaConf.structured(schema)
    text = help_text("python -m x", "About it.", config, schema, {"algo": ["cispo", "grpo"]})
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "  algo: cispo, grpo" in lines
    for group in option_groups(schema):
        for option in group.options:
            assert any(line.startswith(f"  {option.name}=") for line in lines), option.name


def test_help_shows_the_composed_value_and_the_first_sentence():
    config = OmegaConf.structured(Outer)
    config.inner.rate = 0.25
    lines = help_text("python -m x", "", config, Outer, {}).splitlines()
    assert f"{'  inner.rate=0.25':42}Rate of the part, e.g. 0.5." in lines
    assert f"{'  path=???':42}Where it is." in lines
    assert "inner: The inner part." in lines
