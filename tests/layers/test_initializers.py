"""Initializers: distribution as promised, values as Keras', orthogonality, LSUV on real models."""

import json
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layers
from layers import initializers

# name, standard deviation of a (200, 400) kernel by the paper, bound of the values in standard deviations
SCALINGS = [
    ("GlorotUniform", np.sqrt(2 / 600), np.sqrt(3)),
    ("GlorotNormal", np.sqrt(2 / 600), 2 / 0.8796),
    ("HeUniform", np.sqrt(2 / 200), np.sqrt(3)),
    ("HeNormal", np.sqrt(2 / 200), 2 / 0.8796),
    ("LecunUniform", np.sqrt(1 / 200), np.sqrt(3)),
    ("LecunNormal", np.sqrt(1 / 200), 2 / 0.8796),
]
EVERY = [
    *((name, {}) for name, _, _ in SCALINGS),
    ("VarianceScaling", {"scale": 0.5, "mode": "fan_out", "distribution": "untruncated_normal"}),
    ("VarianceScaling", {"scale": 3.0, "input_axes": [1], "output_axes": [0]}),
    ("Orthogonal", {"gain": 1.5}),
    ("RandomUniform", {"minval": -0.5, "maxval": 1.5}),
    ("RandomNormal", {"mean": 1.0, "stddev": 0.5}),
    ("TruncatedNormal", {"mean": 1.0, "stddev": 0.5}),
]


def numpy_of(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


@pytest.mark.parametrize(("name", "std", "bound"), SCALINGS)
def test_distribution_is_the_promised_one(name, std, bound):
    values = numpy_of(getattr(initializers, name)(seed=3)((200, 400)))
    # 80,000 samples: the mean's error is std / 283, the deviation's std / 400; five of each.
    assert abs(values.mean()) < 5 * std / 283
    assert values.std() == pytest.approx(std, rel=5 / 400)
    assert np.abs(values).max() <= bound * std * 1.001
    assert np.abs(values).max() > 0.97 * bound * std


@pytest.mark.parametrize(("name", "arguments"), EVERY)
@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 4, 5)])
def test_values_and_config_equal_keras(name, arguments, shape):
    ours = getattr(initializers, name)(**arguments, seed=11)
    theirs = getattr(keras.initializers, name)(**arguments, seed=11)
    np.testing.assert_allclose(numpy_of(ours(shape)), numpy_of(theirs(shape)), rtol=1e-6, atol=1e-7)
    assert ours.get_config() == theirs.get_config()
    described = json.loads(json.dumps(keras.initializers.serialize(ours)))
    again = keras.initializers.deserialize(described)
    assert type(again) is type(ours)
    np.testing.assert_array_equal(numpy_of(again(shape)), numpy_of(ours(shape)))


@pytest.mark.parametrize(("name", "arguments"), EVERY)
def test_twins_of_keras(name, arguments):
    """Of the same values and seed, be it a number, a generator or Keras' choice; others stay as they are."""
    for seed in (11, keras.random.SeedGenerator(3), None):
        theirs = getattr(keras.initializers, name)(**arguments, seed=seed)
        ours = initializers.twin(theirs)
        assert type(ours) is getattr(initializers, name) and ours.seed is theirs.seed
        if not isinstance(seed, keras.random.SeedGenerator):
            np.testing.assert_allclose(numpy_of(ours((6, 5))), numpy_of(theirs((6, 5))), rtol=1e-6, atol=1e-7)

    class Own(getattr(keras.initializers, name)):
        pass

    for initializer in (Own(), getattr(initializers, name)(), keras.initializers.Zeros()):
        assert initializers.twin(initializer) is initializer
    assert type(initializers.twin("he_normal")) is initializers.HeNormal


def test_a_twin_draws_no_seed():
    """The seeds of all that is made later are those that Keras' own layers would have left."""
    drawn = []
    for changed in (initializers.twin, lambda initializer: initializer):
        keras.utils.set_random_seed(5)
        changed(keras.initializers.GlorotUniform())
        drawn.append(keras.initializers.GlorotUniform().seed)
    assert drawn[0] == drawn[1]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX compiles draws")
@pytest.mark.parametrize("make", [layers.Conv2D, layers.SeparableConv2D])
def test_a_layer_draws_its_weights_in_a_row(monkeypatch, make):
    """In the shape of a small kernel, a draw is a program that takes seconds to compile."""
    import jax
    from keras.src.backend.jax import random
    from keras.src.initializers import random_initializers

    monkeypatch.setattr(random_initializers, "random", random)  # as Keras has it: see tests/conftest.py

    def weights():
        layer = make(16, 3, bias_initializer="random_normal")
        layer.build((None, 8, 8, 16))
        return [jax.numpy.asarray(variable.value) for variable in layer.variables]

    shapes = re.findall(r"random_bits\[[^]]*shape=\(([^)]*)\)", str(jax.make_jaxpr(weights)()))
    assert shapes and all(shape.count(",") == 1 and shape.endswith(",") for shape in shapes), shapes


def test_seeds():
    """A number: the same values again. A generator: new ones. None: decided by Keras' global seed."""
    he = initializers.HeNormal
    fixed = he(seed=1)
    np.testing.assert_array_equal(numpy_of(fixed((3, 4))), numpy_of(fixed((3, 4))))
    running = he(seed=keras.random.SeedGenerator(1))
    assert np.abs(numpy_of(running((3, 4))) - numpy_of(running((3, 4)))).max() > 0
    drawn = []
    for cls in (he, he, keras.initializers.HeNormal):
        keras.utils.set_random_seed(5)
        drawn.append(numpy_of(cls()((3, 4))))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_allclose(drawn[0], drawn[2], rtol=1e-6)
    assert he().get_config()["seed"] is None
    serialized = keras.saving.serialize_keras_object(keras.random.SeedGenerator(7))
    again = he(seed=serialized)
    np.testing.assert_array_equal(
        numpy_of(again((3, 4))), numpy_of(he(seed=keras.random.SeedGenerator(7))((3, 4)))
    )


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.floats(0.5, 2.0))
def test_orthogonal_for_any_shape(shape, gain):
    matrix = numpy_of(initializers.Orthogonal(gain, seed=2)(shape)).reshape(-1, shape[-1])
    small = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-5)


def test_orthogonal_signs_are_uniform():
    """Without the sign of r's diagonal, q's first entry would always have one sign."""
    first = [numpy_of(initializers.Orthogonal(seed=s)((2, 2)))[0, 0] for s in range(1, 17)]
    assert 2 <= sum(value > 0 for value in first) <= 14


@pytest.mark.once
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), (1, 1)), ((7,), (7, 7)), ((3, 5), (3, 5)), ((3, 2, 4, 5), (24, 30))],
)
def test_fans_by_hand(shape, expected):
    assert initializers.fans(shape) == expected
    assert initializers.fans((2, 3, 4), [0], [1, 2]) == (2, 12)


def test_half_precision_and_use_in_a_layer(tmp_path):
    assert (
        keras.backend.standardize_dtype(initializers.HeNormal(seed=1)((2, 2), "float16").dtype) == "float16"
    )
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, kernel_initializer=initializers.Orthogonal(seed=1))]
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[0].kernel_initializer, initializers.Orthogonal)


class Block(keras.layers.Layer):
    """A residual block that calls its second layer before its first, to test the order LSUV finds."""

    def __init__(self):
        super().__init__()
        self.late = keras.layers.Dense(8, activation="tanh", name="late")
        self.early = keras.layers.Dense(8, activation="relu", name="early")

    def call(self, x):
        return x + self.late(self.early(x))


def deep_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer="he_normal"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", bias_initializer="ones"),
            Block(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("seed", [None, 4])
def test_lsuv_gives_every_layer_unit_variance_in_order(seed, rng):
    model = deep_model()
    data = 7.0 + 5.0 * rng.normal(size=(64, 6, 6, 2)).astype("float32")
    activations = [layer.activation for layer in model.layers if hasattr(layer, "activation")]
    reached = initializers.lsuv(model, data, tolerance=0.02, seed=seed)
    assert [path.split("/")[-1].rstrip("_0123456789") for path in reached] == [
        "conv2d",
        "dense",
        "early",
        "late",
        "dense",
    ]
    assert all(abs(std - 1) <= 0.02 for std in reached.values())

    # Measured again without LSUV's own instruments: the first convolution and the last layer's logits.
    convolved = keras.ops.conv(data, model.layers[0].kernel, padding="valid") + model.layers[0].bias
    assert numpy_of(convolved).std() == pytest.approx(1.0, abs=0.03)
    head = model.layers[-1]
    features = keras.Sequential(model.layers[:-1])(data)
    logits = numpy_of(features) @ numpy_of(head.kernel) + numpy_of(head.bias)
    assert logits.std() == pytest.approx(1.0, abs=0.03)

    # And nothing of the instruments is left behind.
    assert [layer.activation for layer in model.layers if hasattr(layer, "activation")] == activations
    assert all("call" not in vars(layer) for layer in model._flatten_layers())
    np.testing.assert_allclose(numpy_of(model(data)).sum(-1), 1.0, rtol=1e-5)


def test_lsuv_orthogonal_start_and_one_rescaling(rng):
    """A linear layer on white data needs no second rescaling, and its kernel is a multiple of a rotation."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    initializers.lsuv(model, 3 * rng.normal(size=(500, 4)).astype("float32"), max_iterations=1, seed=0)
    kernel = numpy_of(model.layers[0].kernel)
    product = kernel.T @ kernel
    np.testing.assert_allclose(product, product[0, 0] * np.eye(4), atol=1e-5)
    assert product[0, 0] == pytest.approx(1 / 9, rel=0.1)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="`scale` must be positive"):
        initializers.VarianceScaling(scale=0.0)
    with pytest.raises(ValueError, match="Invalid `mode`"):
        initializers.VarianceScaling(mode="fan")
    with pytest.raises(ValueError, match="Invalid `distribution`"):
        initializers.VarianceScaling(distribution="cauchy")
    with pytest.raises(ValueError, match="`seed` argument"):
        initializers.HeNormal(seed="one")
    with pytest.raises(ValueError, match="at least two-dimensional"):
        initializers.Orthogonal()((3,))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("relu")], name="no_weights")
    with pytest.raises(ValueError, match="no layer that 'no_weights' runs"):
        initializers.lsuv(model, np.ones((2, 2)))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dead")])
    with pytest.raises(ValueError, match=r"dead.*standard deviation 0\.0"):
        initializers.lsuv(model, np.zeros((2, 2)))
