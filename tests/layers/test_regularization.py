"""Noise and penalties: distributions, adjustable rates, and what stays as Keras has it."""

import keras
import numpy as np
import pytest

import layers
from tests.layers.checking import assert_parity, check_layer, numpy_of

RANDOM = {
    "Dropout": (lambda m, **k: m.Dropout(0.4, **k), (4, 5)),
    "SpatialDropout1D": (lambda m, **k: m.SpatialDropout1D(0.4, **k), (4, 3, 5)),
    "SpatialDropout2D": (lambda m, **k: m.SpatialDropout2D(0.4, **k), (4, 3, 2, 5)),
    "GaussianNoise": (lambda m, **k: m.GaussianNoise(0.4, **k), (4, 5)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_generic_check_against_the_twin(name, rng, tmp_path):
    make, shape = RANDOM[name]
    inputs = rng.normal(size=shape).astype("float32")
    layer = check_layer(
        lambda **extra: make(layers, **extra), inputs, tmp_path, twin=lambda: make(keras.layers)
    )
    np.testing.assert_array_equal(numpy_of(layer(inputs)), inputs)


@pytest.mark.parametrize("name", RANDOM)
def test_weights_are_those_of_keras(name, rng):
    make, _ = RANDOM[name]
    ours, theirs = make(layers), make(keras.layers)
    assert ours.weights == [] and ours.get_weights() == []
    ours.set_weights(theirs.get_weights())
    # The number stands in `variables`, once, beside the seed.
    assert len(ours.variables) == len(theirs.variables) + 1
    assert len({id(variable) for variable in ours.variables}) == len(ours.variables)
    assert ours.trainable_variables == []


def test_dropout_keeps_the_expectation_and_the_rate():
    ones = np.ones((200, 200), "float32")
    outputs = numpy_of(layers.Dropout(0.3, seed=1)(ones, training=True))
    kept = outputs > 0
    # 40,000 draws: three deviations of a frequency are 0.007.
    assert abs(kept.mean() - 0.7) < 0.007
    np.testing.assert_allclose(outputs[kept], 1 / 0.7, rtol=1e-6)


def test_masks_differ_between_calls_and_repeat_with_the_seed():
    ones = np.ones((8, 8), "float32")
    first, second = layers.Dropout(0.5, seed=3), layers.Dropout(0.5, seed=3)
    one, two = (numpy_of(first(ones, training=True)) for _ in range(2))
    assert (one != two).any()
    np.testing.assert_array_equal(one, numpy_of(second(ones, training=True)))


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_extreme_rates(rate, expected):
    inputs = keras.ops.ones((3, 4))
    outputs = numpy_of(layers.Dropout(rate)(inputs, training=True))
    np.testing.assert_array_equal(outputs, np.full((3, 4), expected))


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (lambda: layers.Dropout(0.5, noise_shape=(None, 1, None)), (6, 4, 5), (1,)),
        (lambda: layers.SpatialDropout1D(0.5), (6, 4, 5), (1,)),
        (lambda: layers.SpatialDropout2D(0.5), (6, 3, 4, 5), (1, 2)),
        (lambda: layers.SpatialDropout2D(0.5, "channels_first"), (6, 5, 3, 4), (2, 3)),
        (lambda: layers.StochasticDepth(0.5), (20, 3, 4, 5), (1, 2, 3)),
    ],
)
def test_what_is_dropped_together(layer, shape, axes):
    outputs = numpy_of(layer()(np.ones(shape, "float32"), training=True))
    assert set(np.unique(outputs)) == {0.0, 2.0}
    assert (outputs.min(axis=axes) == outputs.max(axis=axes)).all()


def test_gradient_passes_what_was_kept(rng):
    from recipes.engine import gradients

    layer = layers.Dropout(0.5, seed=2)
    inputs = keras.ops.convert_to_tensor(rng.normal(size=(5, 6)).astype("float32"))
    apply = gradients.functional(layer)
    layer(inputs)

    def loss(x):
        outputs, _ = apply(*gradients.variables_of(layer), x, training=True)
        return keras.ops.sum(outputs), outputs

    (_, outputs), slope = gradients.value_and_grad(loss, has_aux=True)(inputs)
    np.testing.assert_allclose(numpy_of(slope), numpy_of(outputs) / numpy_of(inputs), rtol=1e-5)


def test_the_rate_changes_between_compiled_steps():
    traces = []

    class Counted(layers.Dropout):
        def drop(self, inputs):
            traces.append(1)
            return super().drop(inputs)

    layer = Counted(0.0)
    model = keras.Sequential([keras.Input((50,)), layer])
    model.compile("sgd", loss=lambda target, output: keras.ops.mean(output, axis=-1))
    inputs = np.ones((40, 50), "float32")

    def training_loss():
        return model.train_on_batch(inputs, inputs)

    assert training_loss() == pytest.approx(1.0)
    before = len(traces)
    layer.rate = 1.0
    assert training_loss() == pytest.approx(0.0)
    layer.rate = 0.5
    assert 0.9 < training_loss() < 1.1
    if keras.backend.backend() != "torch":
        assert len(traces) == before, "compiled again"


def test_the_rate_reads_back_as_given():
    layer = layers.Dropout(0.1)
    assert layer.rate == 0.1 and layer.get_config()["rate"] == 0.1
    layer.rate = 0.3
    assert layer.get_config()["rate"] == 0.3
    # A checkpoint writes the variable itself.
    layer.variables[-1].assign(0.25)
    assert layer.rate == 0.25
    with pytest.raises(ValueError, match="`rate`"):
        layer.rate = 1.5
    assert layer.rate == 0.25


def test_a_saved_model_keeps_the_present_rate(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.1), layers.GaussianNoise(0.2)])
    model.layers[0].rate = 0.6
    model.layers[1].stddev = 0.7
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.layers[0].rate, loaded.layers[1].stddev) == (0.6, 0.7)


def test_noise_has_its_deviation_and_changes_with_it():
    layer = layers.GaussianNoise(0.5, seed=1)
    zeros = np.zeros((200, 200), "float32")
    noise = numpy_of(layer(zeros, training=True))
    assert abs(noise.std() - 0.5) < 0.01 and abs(noise.mean()) < 0.01
    layer.stddev = 0.0
    np.testing.assert_array_equal(numpy_of(layer(zeros, training=True)), zeros)


def test_mc_dropout_samples_at_inference():
    layer = layers.MCDropout(0.5)
    model = keras.Sequential([keras.Input((20,)), layer])
    ones = np.ones((4, 20), "float32")
    one, two = (model.predict(ones, verbose=0) for _ in range(2))
    assert set(np.unique(one)) == {0.0, 2.0} and (one != two).any()
    assert type(layer).from_config(layer.get_config()).rate == 0.5


@pytest.mark.parametrize("make", [lambda **k: layers.StochasticDepth(0.3, **k)])
def test_stochastic_depth_passes_the_generic_check(make, rng, tmp_path):
    check_layer(make, rng.normal(size=(3, 4)).astype("float32"), tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_in_training(policy):
    outputs = layers.Dropout(0.5, dtype=policy)(np.ones((4, 5), "float32"), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    noisy = layers.GaussianNoise(0.5, dtype=policy)(np.ones((4, 5), "float32"), training=True)
    assert keras.backend.standardize_dtype(noisy.dtype) == policy.removeprefix("mixed_")


PENALTIES = {
    "L1": lambda m: m.L1(0.2),
    "L2": lambda m: m.L2(0.3),
    "L1L2": lambda m: m.L1L2(0.2, 0.3),
    "L1 default": lambda m: m.L1(),
    "L2 default": lambda m: m.L2(),
    "L1L2 default": lambda m: m.L1L2(),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_equal_keras(name, rng):
    ours, theirs = PENALTIES[name](layers), PENALTIES[name](keras.regularizers)
    weights = keras.ops.convert_to_tensor(rng.normal(size=(3, 4)).astype("float32"))
    np.testing.assert_allclose(numpy_of(ours(weights)), numpy_of(theirs(weights)), rtol=1e-6)
    np.testing.assert_allclose(
        list(ours.get_config().values()), list(theirs.get_config().values()), rtol=1e-6
    )
    assert ours.get_config().keys() == theirs.get_config().keys()
    again = keras.regularizers.deserialize(keras.regularizers.serialize(ours))
    assert type(again) is type(ours) and again.get_config() == ours.get_config()


def test_penalties_by_hand(rng):
    weights = keras.ops.convert_to_tensor(np.array([1.0, -2.0], "float32"))
    assert float(numpy_of(layers.L1(0.5)(weights))) == pytest.approx(1.5)
    assert float(numpy_of(layers.L2(0.5)(weights))) == pytest.approx(2.5)
    # 0.5 (0.2 * 3 + 0.8 / 2 * 5) = 1.3
    assert float(numpy_of(layers.ElasticNet(0.5, 0.2)(weights))) == pytest.approx(1.3)
    net = layers.ElasticNet(0.5, 0.2)
    assert type(net).from_config(net.get_config()).get_config() == net.get_config()


def test_penalized_layer_trains_as_keras(rng):
    inputs = rng.normal(size=(4, 3)).astype("float32")
    ours = keras.layers.Dense(2, kernel_regularizer=layers.L1L2(0.1, 0.2))
    theirs = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2))
    assert_parity(ours, theirs, inputs)
    np.testing.assert_allclose(numpy_of(ours.losses[0]), numpy_of(theirs.losses[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.Dropout(-0.1), "`rate`"),
        (lambda: layers.Dropout(1.1), "`rate`"),
        (lambda: layers.GaussianNoise(2.0), "`stddev`"),
        (lambda: layers.Dropout(0.5, noise_shape="12"), "noise_shape"),
        (lambda: layers.Dropout(0.5, noise_shape=3), "noise_shape"),
        (lambda: layers.Dropout(0.5, noise_shape=(2, 0)), "noise_shape"),
        (lambda: layers.Dropout(0.5, noise_shape=(2, 1.5)), "noise_shape"),
        (lambda: layers.SpatialDropout2D(0.5)(np.zeros((2, 3, 4), "float32")), "ndim=4"),
        (lambda: layers.L1(-1.0), "non-negative"),
        (lambda: layers.L2(float("nan")), "non-negative"),
        (lambda: layers.L1L2(l2="much"), "non-negative"),
        (lambda: layers.ElasticNet(0.1, 1.5), "ratio"),
    ],
)
def test_clear_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
