"""Search spaces: typed by the recipe's Config, checked before anything starts."""

import pytest

from recipes.cnn_cifar import Config
from recipes.engine.errors import RecipeError
from tuning.space import parse

pytestmark = pytest.mark.once


def test_a_grid_is_every_combination_with_typed_values():
    settings = parse(Config, grid=["optimizer=sgd,adam", "batch-size=32,64"]).settings(trials=5, seed=0)
    assert settings == [
        {"optimizer": optimizer, "batch_size": size} for optimizer in ("sgd", "adam") for size in (32, 64)
    ]


def test_draws_lie_within_bounds_and_follow_the_seed():
    axes = parse(
        Config,
        grid=["augment=true,false"],
        choice=["activation=relu,gelu"],
        uniform=["label_smoothing=0,0.2"],
        loguniform=["learning_rate=1e-4,1e-1"],
    )
    settings = axes.settings(trials=200, seed=1)
    assert len(settings) == 400 and settings == axes.settings(200, 1) != axes.settings(200, 2)
    assert {setting["activation"] for setting in settings} == {"relu", "gelu"}
    assert all(0 <= setting["label_smoothing"] <= 0.2 for setting in settings)
    rates = [setting["learning_rate"] for setting in settings]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    # Log-uniform: as many below the geometric middle as above.
    assert 0.4 < sum(rate < 10**-2.5 for rate in rates) / 400 < 0.6


def test_a_conditional_field_varies_only_where_it_applies():
    axes = parse(Config, grid=["optimizer=sgd,adamw", "weight_decay=0.1,0.2,0.3@optimizer=adamw"])
    assert axes.settings(trials=1, seed=0) == [
        {"optimizer": "sgd"},
        *({"optimizer": "adamw", "weight_decay": decay} for decay in (0.1, 0.2, 0.3)),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"grid": ["optimzer=sgd"]}, "unknown field 'optimzer': did you mean 'optimizer'?"),
        ({"grid": ["optimizer=sgdd"]}, "unknown value of --optimizer 'sgdd': did you mean 'sgd'?"),
        ({"grid": ["optimizer"]}, "--grid takes field=value,value,..., not 'optimizer'"),
        ({"grid": ["optimizer=sgd,"]}, "--grid takes field=value"),
        ({"grid": ["optimizer=sgd"], "choice": ["optimizer=adam"]}, "field 'optimizer' is varied twice"),
        ({"grid": ["seed=1,2"]}, "--grid cannot vary 'seed'"),
        ({"uniform": ["batch_size=1,2"]}, "--uniform draws numbers, and 'batch_size' is not a float"),
        ({"uniform": ["label_smoothing=0.2,0.1"]}, "--uniform takes label_smoothing=low,high"),
        ({"uniform": ["weight_decay=0,inf"]}, "--uniform takes weight_decay=low,high, finite"),
        ({"loguniform": ["weight_decay=nan,1"]}, "--loguniform takes weight_decay=low,high, finite"),
        ({"loguniform": ["weight_decay=0,1"]}, "--loguniform weight_decay needs positive bounds"),
        ({}, "nothing varies"),
        (
            {"grid": ["optimizer=sgd,adam"], "uniform": ["weight_decay=0,1@optimzer=adam"]},
            "unknown field 'optimzer': did you mean 'optimizer'?",
        ),
        (
            {"grid": ["optimizer=sgd,adam"], "uniform": ["weight_decay=0,1@optimizer=adamw"]},
            "'@optimizer=adamw' never holds: optimizer is one of sgd, adam",
        ),
        (
            {"grid": ["optimizer=sgd,adam"], "uniform": ["weight_decay=0,1@model=small"]},
            "'@model=small' must name one value of another field that varies: optimizer, weight_decay",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_valid_name(words, sentence):
    with pytest.raises(RecipeError) as error:
        parse(Config, **words)
    assert str(error.value).startswith(sentence) and error.value.exit_code == 2
