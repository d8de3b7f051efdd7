"""What the common flags of training mean, and the compiled step for what `model.fit` cannot say."""

from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from mlflow import MlflowClient

import layers
from recipes import engine, rerun, training_loop
from recipes.engine import gradients, launch, learning_rates, probes, training
from recipes.engine.data import Batches, Split
from recipes.engine.errors import RecipeError
from tests.layers.checking import numpy_of
from tests.recipes import killable
from tests.recipes.recorded import Recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(**fields):
    """A run of the killable recipe: (final metrics, MLflow's record of it)."""
    config = killable.Config(**{"backend": keras.backend.backend(), "epochs": 2, "batch_size": 64, **fields})
    keras.utils.clear_session()
    metrics = launch.run_recipe(config, killable.train)
    client = MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("killable").experiment_id
    (found,) = client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)
    return metrics, found


def figures(found):
    return {path.stem for path in Path(found.info.artifact_uri.removeprefix("file://")).rglob("*.png")}


def split_of(rng, n=64, features=5):
    return Split(rng.normal(size=(n, features)).astype("float32"), rng.integers(0, 3, n).astype("int32"))


def fitted(split, accumulate=1, optimizer=layers.optimizers.SGD, **fields):
    """A small classifier after one epoch: weights as arrays, and the model."""
    keras.utils.set_random_seed(3)
    config = killable.Config(
        backend=keras.backend.backend(), batch_size=16, accumulate=accumulate, checkpoint_every="0", **fields
    )
    model = keras.Sequential([keras.Input((5,)), layers.Dense(7, activation="tanh"), layers.Dense(3)])
    schedule = layers.schedules.ExponentialDecay(0.1, 2, 0.9)
    model.compile(
        optimizer(schedule, **training.optimizer_options(config)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    training.fit(model, Batches(split, 16, 0, accumulate=accumulate), split, config, Recorded(), schedule)
    return [numpy_of(v) for v in model.trainable_variables], model


@pytest.mark.parametrize("optimizer", [layers.optimizers.SGD, layers.optimizers.AdamW])
def test_accumulated_gradients_are_those_of_the_whole_batch(rng, optimizer):
    split = split_of(rng)
    whole, _ = fitted(split, optimizer=optimizer, epochs=2, ema=0.5, clip_norm=0.3)
    parts, model = fitted(split, accumulate=4, optimizer=optimizer, epochs=2, ema=0.5, clip_norm=0.3)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert int(model.optimizer.iterations) == 8


def test_averaged_weights_are_evaluated_and_kept(rng):
    """With a momentum of 1/2 the average of two updates lies halfway between them."""
    split = split_of(rng, n=32)
    # One epoch is two steps. The first starts the average, so that it ends at (w1 + w2) / 2.
    w1, _ = fitted(Split(*Batches(split, 16, 0)[0]), epochs=1)
    w2, _ = fitted(split, epochs=1)
    averaged, _ = fitted(split, epochs=1, ema=0.5)
    for one, two, mean in zip(w1, w2, averaged, strict=True):
        np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-6)


def test_weights_without_averages_are_not_copied(rng, monkeypatch):
    _, model = fitted(split_of(rng))
    monkeypatch.setattr(ops, "copy", lambda *arguments: pytest.fail("copied"))
    with training.averaged(model, model.optimizer):
        pass


def test_clipping_bounds_the_step(rng):
    split = split_of(rng, n=16)
    keras.utils.set_random_seed(3)
    before = [numpy_of(v) for v in keras.Sequential(
        [keras.Input((5,)), layers.Dense(7, activation="tanh"), layers.Dense(3)]
    ).trainable_variables]  # fmt: skip
    after, _ = fitted(split, epochs=1, clip_norm=0.01)
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(after, before, strict=True)))
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_training_curves_hold_no_validation_examples(rng):
    """Weights that stay where they are: every epoch's points are the same, whatever validation gives."""
    split, run = split_of(rng, n=32), Recorded()
    wrong = Split(50 * split.x, (split.y + 1) % 3)
    config = killable.Config(
        backend=keras.backend.backend(), batch_size=32, epochs=3, accumulate=1, checkpoint_every="0"
    )
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    model.compile(
        layers.optimizers.SGD(1e-12),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    training.fit(model, Batches(split, 32, 0), wrong, config, run, layers.schedules.Constant(1e-12))
    points = {name: [value for _, value in run.history[name]] for name in ("train/loss", "val/loss")}
    np.testing.assert_allclose(points["train/loss"], points["train/loss"][0], rtol=1e-5)
    assert len(points["train/loss"]) == 3 and points["val/loss"][0] > 2 * points["train/loss"][0]


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_learns(rng, precision):
    keras.config.set_dtype_policy(precision)
    try:
        x = rng.normal(size=(256, 5)).astype("float32")
        split = Split(x, (x[:, 0] > 0).astype("int32"))
        weights, model = fitted(split, epochs=12, precision=precision, optimizer=layers.optimizers.Adam)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {w.dtype.name for w in weights} == {"float32"}
    # float16 alone needs its loss scaled: its smallest number is 6e-8.
    assert hasattr(model.optimizer, "inner_optimizer") == (precision == "mixed_float16")
    predicted = numpy_of(ops.cast(model(x), "float32")).argmax(axis=-1)
    assert np.mean(predicted == split.y) > 0.9


def test_loops_agree(here):
    flags = {"accumulate": 2, "clip_norm": 1.0, "ema": 0.5, "probe": 12}
    config = training_loop.Config.small(backend=keras.backend.backend(), **flags)
    metrics = launch.run_recipe(config, training_loop.train)
    assert len(list(Path("mlruns/artifacts/training_loop").rglob("probe_grad_norm.png"))) == 1
    differences = [value for name, value in metrics.items() if name.startswith("difference/")]
    assert len(differences) == 4 and max(differences) <= 1e-3
    assert all(value <= 1e-5 for name, value in metrics.items() if "_first_" in name)
    assert metrics["test/accuracy"] > 0.2


def test_loops_agree_in_half_precision(here):
    """Each scales its losses, by a factor that falls where a gradient overflows and that step is left out."""
    config = training_loop.Config.small(backend=keras.backend.backend(), precision="mixed_float16")
    assert isinstance(training_loop.build_optimizer(config), keras.optimizers.LossScaleOptimizer)
    try:
        metrics = launch.run_recipe(config, training_loop.train)
    finally:
        keras.config.set_dtype_policy("float32")
    differences = [value for name, value in metrics.items() if name.startswith("difference/")]
    assert len(differences) == 4 and max(differences) <= 1e-5
    assert metrics["test/accuracy"] > 0.2


def test_gradient_penalty_in_a_compiled_step():
    """A linear critic D(x) = w.x has the gradient w, so the penalty (|w| - 1)^2 pulls w to length 1."""
    critic = layers.Dense(1, use_bias=False)
    critic.build((None, 4))
    start = np.array([[3.0], [0.0], [4.0], [0.0]], "float32")
    critic.kernel.assign(start)
    other = keras.Variable(np.zeros(()), dtype="float32")
    optimizers = layers.optimizers.SGD(0.1), layers.optimizers.SGD(1.0)
    for optimizer, variable in zip(optimizers, (critic.kernel, other), strict=True):
        optimizer.build([variable])

    def step(x):
        def penalty():
            _, slope = gradients.value_and_grad(lambda points: ops.sum(critic(points)))(x)
            return ops.mean(ops.square(ops.sqrt(ops.sum(ops.square(slope), axis=-1)) - 1.0))

        value, slopes = gradients.by_variables(penalty, [critic.kernel])
        optimizers[0].apply(slopes, [critic.kernel])
        _, slopes = gradients.by_variables(lambda: ops.square(other - value), [other])
        optimizers[1].apply(slopes, [other])
        return value

    variables = [critic.kernel, other, *optimizers[0].variables, *optimizers[1].variables]
    compiled = gradients.compiled_step(step, variables)
    points = ops.convert_to_tensor(np.ones((2, 4), "float32"))
    assert float(compiled(points)) == pytest.approx(16.0, rel=1e-5)
    # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|, with |w| = 5
    np.testing.assert_allclose(numpy_of(critic.kernel), start - 0.1 * 8 * start / 5, rtol=1e-5)
    assert float(other) == pytest.approx(32.0, rel=1e-5)
    for _ in range(100):
        last = float(compiled(points))
    assert last < 1e-6


def test_by_variables_has_aux_and_zero_for_what_is_not_used():
    used, unused = (keras.Variable(np.full((2,), value, "float32")) for value in (3.0, 5.0))
    seen = keras.Variable(0.0)

    def step(x):
        def loss():
            seen.assign_add(ops.sum(x))
            return ops.sum(used * used * x), {"double": 2 * x}

        (value, aux), slopes = gradients.by_variables(loss, [used, unused], has_aux=True)
        return value, aux["double"], slopes

    compiled = gradients.compiled_step(step, [used, unused, seen])
    value, double, slopes = compiled(ops.ones((2,)))
    assert float(value) == 18.0 and float(seen) == 2.0
    np.testing.assert_array_equal(numpy_of(double), [2, 2])
    np.testing.assert_array_equal(numpy_of(slopes[0]), [6, 6])
    np.testing.assert_array_equal(numpy_of(slopes[1]), [0, 0])


def test_rematerialized_gradients_are_the_same(rng):
    weight = keras.Variable(rng.normal(size=(6, 6)).astype("float32"))
    x = ops.convert_to_tensor(rng.normal(size=(3, 6)).astype("float32"))
    calls = []

    def block(value):
        calls.append(1)
        return ops.tanh(ops.tanh(value) * 2)

    def slope_with(function):
        def step(x):
            loss = lambda: ops.sum(ops.square(function(ops.matmul(x, weight))))  # noqa: E731
            return gradients.by_variables(loss, [weight])[1]

        calls.clear()
        (slope,) = gradients.compiled_step(step, [weight])(x)
        return numpy_of(slope), len(calls)

    kept, once = slope_with(block)
    again, twice = slope_with(keras.remat(block))
    np.testing.assert_allclose(kept, again, rtol=1e-5)
    assert once == 1
    if keras.backend.backend() != "jax":  # JAX runs the recorded operations again, not the function
        assert twice == 2


class Subclassed(keras.Model):
    """Layers that only `call` connects."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(6, activation="relu", name="first")
        self.second = layers.Dense(4, activation="tanh", name="second")
        self.last = layers.Dense(3, name="last")

    def call(self, x):
        """Apply the layers."""
        return self.last(self.second(self.first(x)))


def test_probe_says_what_can_be_computed_by_hand(rng):
    x, y = rng.normal(size=(16, 5)).astype("float32"), rng.integers(0, 3, 16)
    model = Subclassed()
    model.compile(layers.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model(x)
    kernel = np.zeros((5, 6), "float32")
    kernel[:, :2] = rng.normal(size=(5, 2))
    model.first.kernel.assign(kernel)
    model.first.bias.assign(np.array([0, 0, 1, -1, -1, 0], "float32"))  # units 3, 4 and 5 are dead
    model.second.bias.assign(np.array([9, -9, 9, 0], "float32"))  # three of four are saturated
    values = probes.Look(model)(x, y)
    assert values["dead/first"] == pytest.approx(0.5)
    assert 0.75 <= values["saturation/second"] < 1
    assert values["weight_norm/first"] == pytest.approx(np.sqrt(np.sum(kernel**2) + 3), rel=1e-5)
    hidden = np.maximum(x @ kernel + [0, 0, 1, -1, -1, 0], 0)
    assert values["activation_mean/first"] == pytest.approx(hidden.mean(), rel=1e-5)
    assert values["activation_std/first"] == pytest.approx(hidden.std(), rel=1e-5)
    # The gradient by the last layer's weights: hidden^T (softmax - one-hot) / n.
    hidden = np.tanh(hidden @ numpy_of(model.second.kernel) + [9, -9, 9, 0])
    logits = hidden @ numpy_of(model.last.kernel)
    error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[y]
    slopes = np.sum((hidden.T @ error / 16) ** 2) + np.sum(error.mean(axis=0) ** 2)
    assert values["grad_norm/last"] == pytest.approx(np.sqrt(slopes), rel=1e-4)
    parts = [values[f"grad_norm/{name}"] for name in ("first", "second", "last")]
    assert values["grad_norm/global"] == pytest.approx(np.sqrt(np.sum(np.square(parts))), rel=1e-5)


def test_probe_may_look_at_every_step(rng):
    split, run, model = (
        split_of(rng),
        Recorded(),
        keras.Sequential([keras.Input((5,)), layers.Dense(3, name="only")]),
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    probe = probes.Probe({"": probes.Look(model)}, run, Batches(split, 16, 0), every=1)
    model.layers[-1].kernel.assign(np.ones((5, 3)))
    for done in (1, 2, 3):
        model.layers[-1].kernel.assign(model.layers[-1].kernel * 1.5)
        probe.after_step(done)
    assert [step for step, _ in run.history["grad_norm/only"]] == [1, 2, 3]
    assert run.history["update_ratio/only"] == [(2, pytest.approx(0.5)), (3, pytest.approx(0.5))]


def test_probing_shows_everything_and_changes_nothing(here):
    _, plain = run(out="plain.npz", accumulate=2)
    _, probed = run(out="probed.npz", accumulate=2, probe=6)
    one, other = np.load("plain.npz"), np.load("probed.npz")
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])
    new = set(probed.data.metrics) - set(plain.data.metrics)
    assert {name.split("/")[0] for name in new} == set(probes.KINDS) - {"dead"}
    assert {f"probe_{kind}" for kind in probes.KINDS if kind != "dead"} <= figures(probed)
    client = MlflowClient(f"sqlite:///{here / 'mlruns/mlflow.db'}")
    for name in (name for name in new if name.startswith("update_ratio/")):
        ratios = [point.value for point in client.get_metric_history(probed.info.run_id, name)]
        assert len(ratios) == 6
        assert all(1e-6 < ratio < 1 for ratio in ratios)
        assert ratios[-1] < ratios[0] / 10  # the cosine has come down nearly to zero


def test_range_test_suggests_a_rate_that_learns(here):
    metrics, found = run(find_lr=True)
    assert found.info.status == "FINISHED"
    assert "learning_rate_range" in figures(found)
    assert learning_rates.LOWEST < metrics["suggested/learning_rate"] <= metrics["suggested/peak"]
    assert metrics["suggested/peak"] < learning_rates.HIGHEST
    assert 1e-4 < metrics["suggested/learning_rate"] < 1  # AdamW learns digits with some thousandths


def test_range_test_of_a_known_curve():
    rates = np.logspace(-6, 1, 200)
    losses = 2 - 1 / (1 + np.exp(-3 * (np.log10(rates) + 3))) + 5 * rates
    steepest, lowest = learning_rates.suggest(rates, losses)
    assert steepest == pytest.approx(1e-3, rel=0.2)
    assert 1e-3 < lowest < 0.1
    with pytest.raises(RecipeError, match="rises from the first step"):
        learning_rates.suggest(rates, rates)


@pytest.mark.once
def test_where_the_range_test_ends():
    """Three times a positive loss; a critic's may begin at 0, and fall below it, and rise from there."""
    noise = 0.1 * np.cos(np.arange(12))
    assert learning_rates.diverged(3.31, [*(1 + noise)]) and not learning_rates.diverged(3.29, [*(1 + noise)])
    around_zero = [0.0, *noise]
    assert not any(learning_rates.diverged(loss, around_zero[:place]) for place, loss in enumerate(noise))
    assert not learning_rates.diverged(0.3, around_zero) and learning_rates.diverged(0.5, around_zero)
    below = [*(noise - 2), -5.0, -9.0]
    assert not learning_rates.diverged(0.0, below) and learning_rates.diverged(13.0, below)
    assert not learning_rates.diverged(12.0, below)


def test_rerun_repeats_a_run_and_tells_a_difference(here, monkeypatch, capsys):
    monkeypatch.setattr(rerun, "importlib", SimpleNamespace(import_module=lambda name: killable))
    _, found = run(ema=0.9)
    uri = f"sqlite:///{here / 'mlruns/mlflow.db'}"
    keras.utils.clear_session()
    assert rerun.rerun(found.info.run_id, uri)
    MlflowClient(uri).log_metric(found.info.run_id, "val/loss", 1.0, step=1)
    keras.utils.clear_session()
    assert not rerun.rerun(found.info.run_id, uri)
    assert "val/loss differs from step 1 on: 1.0 was, None is now" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="there is no run"):
        rerun.rerun("nonsense", uri)


def test_data_order_and_process_are_recorded(here):
    _, found = run(epochs=1, seed=7)
    data = engine.data.load("digits")
    assert found.data.tags["data.order"] == Batches(data.train, 64, 7, "crop_flip").fingerprint
    assert {"host", "process", "command", "version.keras"} <= set(found.data.tags)


@pytest.mark.parametrize("every", ["5m", "-3", "s", "0s", "often"])
def test_checkpoint_every_is_steps_or_seconds(every):
    with pytest.raises(RecipeError, match="--checkpoint-every takes steps"):
        killable.Config(checkpoint_every=every)
