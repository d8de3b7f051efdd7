"""Every recipe on the engine honours the common flags of training, or refuses them before it computes."""

import importlib

import keras
import numpy as np
import pytest

from layers.autograd import Tensor
from layers.autograd.optim import SGD
from recipes.engine import catalogue, launch, learning_rates
from recipes.engine.config import ResumableConfig, TrainingConfig, check_words, field_types
from recipes.engine.errors import Finished, RecipeError
from recipes.engine.progress import Progress
from tests.recipes.recorded import Recorded

pytestmark = pytest.mark.once

CONFIGS = {name: importlib.import_module(f"recipes.{name}").Config for name in catalogue.names()}
RECIPES = [name for name, config in CONFIGS.items() if issubclass(config, TrainingConfig)]
OTHERS = [name for name in CONFIGS if name not in (*RECIPES, "autograd_engine")]  # with steps of their own
FLAGS = {
    "accumulate": 2,
    "clip_norm": 0.5,
    "ema": 0.75,
    "early_stopping": 3,
    "checkpoint_every": "10",
    "probe": 2,
    "find_lr": True,
    "precision": "mixed_float16",
    "deterministic": True,
}
CUTS_ITSELF = {"gan_mnist"}  # all parts of one player's update come before those of the other's


class Reached(BaseException):
    """Ends a run where it has shown what was asked."""


def refuses(name, **fields):
    """Whether a recipe refuses some flags, in one sentence and as a wrong command line."""
    try:
        CONFIGS[name].small(**fields)
    except RecipeError as error:
        assert error.exit_code == 2 and "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_refused(name):
    assert not [flag for flag, value in FLAGS.items() if refuses(name, **{flag: value})]


def test_all_that_train_a_network_can_be_resumed():
    assert [name for name, config in CONFIGS.items() if not issubclass(config, ResumableConfig)] == [
        "autograd_engine"
    ]


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Begin a recipe's training with some flags: its progress at the first step, and its optimizers."""
    monkeypatch.chdir(tmp_path)
    optimizers, before = [], keras.optimizers.Optimizer.__init__

    def remembered(self, *arguments, **named):
        optimizers.append(self)
        before(self, *arguments, **named)

    def reached(progress, *arguments):
        raise Reached(progress)

    monkeypatch.setattr(keras.optimizers.Optimizer, "__init__", remembered)
    monkeypatch.setattr(Progress, "after_step", reached)

    def begin(name, **fields):
        config = CONFIGS[name].small(**fields)
        launch._seed(config)
        with pytest.raises(Reached) as end:
            importlib.import_module(f"recipes.{name}").train(config, Recorded())
        (progress,) = end.value.args
        trained = {id(variable) for group in progress.state.values() for variable in group}
        return progress, [one for one in optimizers if trained & {id(v) for v in one.variables}]

    yield begin
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_honoured(begun, name):
    flags = {**FLAGS, "find_lr": False, "deterministic": False}  # the latter is `launch`'s
    progress, optimizers = begun(name, epochs=1, **flags)
    scaling = [optimizer for optimizer in optimizers if hasattr(optimizer, "inner_optimizer")]
    inner = [optimizer for optimizer in optimizers if optimizer not in scaling]
    assert inner and {id(optimizer.inner_optimizer) for optimizer in scaling} == {id(one) for one in inner}
    for optimizer in inner:
        assert optimizer.global_clipnorm == flags["clip_norm"]
        assert optimizer.use_ema and optimizer.ema_momentum == flags["ema"]
        assert optimizer.gradient_accumulation_steps == flags["accumulate"]
    assert progress.data.accumulate == (1 if name in CUTS_ITSELF else flags["accumulate"])
    assert progress.patience == flags["early_stopping"]
    assert progress.steps_between == 10 * progress.data.accumulate
    assert progress.probe is not None
    assert keras.config.dtype_policy().name == flags["precision"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_learning_rate_is_looked_for(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)

    def find(*arguments):
        raise Reached

    monkeypatch.setattr(learning_rates, "find", find)
    with pytest.raises(Reached):
        importlib.import_module(f"recipes.{name}").train(CONFIGS[name].small(find_lr=True), Recorded())


def test_all_that_train_a_network_look_for_its_learning_rate():
    assert [name for name, config in CONFIGS.items() if "find_lr" not in field_types(config)] == [
        "autograd_engine"
    ]
    with pytest.raises(RecipeError, match="unknown flag '--find-lr'") as error:
        check_words(CONFIGS["autograd_engine"], ["--find-lr"])
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", OTHERS)
def test_a_learning_rate_is_suggested(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    run = Recorded()
    with pytest.raises(Finished) as end:
        importlib.import_module(f"recipes.{name}").train(CONFIGS[name].small(find_lr=True), run)
    suggested = end.value.metrics
    assert set(suggested) == {"suggested/learning_rate", "suggested/peak"}
    assert learning_rates.LOWEST < suggested["suggested/learning_rate"] < suggested["suggested/peak"]
    assert suggested["suggested/peak"] <= learning_rates.HIGHEST
    assert run.pictures == ["learning_rate_range"] and set(run.history) == {"range/loss", "lr"}
    losses = np.array([loss for _, loss in run.history["range/loss"]])
    assert len(losses) > 60 and losses.min() < 0.75 * losses[0]
    # The rates are those of the test, not the recipe's own: with the first of them nothing is learned.
    assert losses[20:30].mean() > 0.9 * losses[:10].mean()


def test_an_optimizer_is_told_the_rates():
    """Gradient descent on c w^2 / 2: every step multiplies w by 1 - c rate, and above 2 / c it grows."""
    weight, steepness, run = Tensor(np.ones(1), requires_grad=True), 50.0, Recorded()
    optimizer = SGD([weight], learning_rate=123.0)

    def step(number):
        assert number == optimizer.steps
        optimizer.zero_grad()
        loss = (weight * weight * (steepness / 2)).sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    with pytest.raises(Finished):
        learning_rates.find_with(optimizer, step, run)
    rates, losses = (np.array([value for _, value in run.history[name]]) for name in ("lr", "range/loss"))
    place = np.cumprod([1.0, *(1 - steepness * rates[:-1])])
    np.testing.assert_allclose(losses, steepness / 2 * place**2, rtol=1e-9)
    assert rates[0] == learning_rates.LOWEST and rates[np.argmin(losses) - 1] < 2 / steepness < rates[-1]
