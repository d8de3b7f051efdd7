"""Words of a command line become values of fields, or one clear sentence."""

from dataclasses import dataclass
from typing import Literal

import pytest

from recipes.engine.config import RunConfig, TrainingConfig, check_words, value_of
from recipes.engine.errors import RecipeError

pytestmark = pytest.mark.once


@dataclass(frozen=True)
class Config(RunConfig):
    colour: Literal["red", "green"] = "red"
    width: int = 3
    rate: float | None = None
    loud: bool = False


def test_values_have_the_type_of_the_field():
    assert value_of(Config, "colour", "green") == "green"
    assert value_of(Config, "batch-size", "64") == 64
    assert value_of(Config, "rate", "1e-3") == 1e-3
    assert value_of(Config, "rate", "None") is None
    assert value_of(Config, "loud", "true") is True


@pytest.mark.parametrize(
    ("name", "word", "sentence"),
    [
        ("colour", "gren", "unknown value of --colour 'gren': did you mean 'green'?"),
        ("precision", "float16", "unknown value of --precision 'float16': did you mean 'mixed_float16'?"),
        ("widht", "3", "unknown field 'widht': did you mean 'width'?"),
        ("width", "wide", "--width takes a whole number, not 'wide'"),
        ("rate", "fast", "--rate takes a number, not 'fast'"),
        ("loud", "yes", "unknown value of --loud 'yes'"),
    ],
)
def test_what_is_wrong_is_named(name, word, sentence):
    with pytest.raises(RecipeError) as error:
        value_of(Config, name, word)
    assert str(error.value).startswith(sentence) and error.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--colr", "red"], "unknown flag '--colr': did you mean '--colour'?"),
        (["--width"], "--width needs a value"),
        (["--width=x"], "--width takes a whole number"),
        (["red"], "unknown argument 'red'"),
    ],
)
def test_command_lines_that_cannot_be_carried_out(words, sentence):
    with pytest.raises(RecipeError) as error:
        check_words(Config, words)
    assert str(error.value).startswith(sentence)


def test_command_lines_that_can():
    check_words(Config, ["--colour", "green", "--loud", "--no-loud", "--batch_size=3", "--width", "4"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive"),
        ({"seed": -1}, "--seed must lie in"),
        ({"colour": "blue"}, "unknown value of --colour 'blue'"),
        ({"resume": "abc"}, "this recipe trains no network and writes no checkpoints"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(RecipeError) as error:
        Config(**changes)
    assert str(error.value).startswith(sentence) and error.value.exit_code == 2


def test_a_batch_is_cut_into_equal_parts():
    assert TrainingConfig(batch_size=12, accumulate=3).accumulate == 3
    with pytest.raises(RecipeError, match="--accumulate 5 does not divide --batch-size 12: choose") as error:
        TrainingConfig(batch_size=12, accumulate=5)
    assert error.value.exit_code == 2
