"""Losses: values, gradients, weights, masks and reductions as Keras'; hand values; no tail lost."""

import inspect

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import losses
from recipes.engine import gradients
from tests.layers.checking import numpy_of

rng = np.random.default_rng(3)
LOGITS = rng.normal(size=(4, 3)).astype("float32") * 3
PROBABILITIES = (lambda e: e / e.sum(-1, keepdims=True))(np.exp(LOGITS))
UNIT = 1 / (1 + np.exp(-LOGITS))
TARGETS = rng.normal(size=(4, 3)).astype("float32")
BITS = rng.integers(0, 2, (4, 3)).astype("float32")
CLASSES = np.array([2, 0, 1, 2], "int32")
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0], "float32")

# name, arguments, labels, predictions
CASES = [
    ("MeanSquaredError", {}, TARGETS, LOGITS),
    ("MeanAbsoluteError", {}, TARGETS, LOGITS),
    ("Huber", {}, TARGETS, LOGITS),
    ("Huber", {"delta": 0.4}, TARGETS, LOGITS),
    ("Hinge", {}, BITS, LOGITS),
    ("Hinge", {}, 2 * BITS - 1, LOGITS),
    ("SquaredHinge", {}, BITS, LOGITS),
    ("CategoricalHinge", {}, ONE_HOT, LOGITS),
    ("KLDivergence", {}, PROBABILITIES[::-1].copy(), PROBABILITIES),
    ("BinaryCrossentropy", {}, BITS, UNIT),
    ("BinaryCrossentropy", {"from_logits": True}, BITS, LOGITS),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, BITS, LOGITS),
    ("BinaryFocalCrossentropy", {}, BITS, UNIT),
    # Smaller logits: Keras goes through 1 - sigmoid, which loses digits for large ones.
    (
        "BinaryFocalCrossentropy",
        {"from_logits": True, "gamma": 1.5, "label_smoothing": 0.1},
        BITS,
        LOGITS / 4,
    ),
    ("BinaryFocalCrossentropy", {"apply_class_balancing": True, "alpha": 0.4}, BITS, UNIT),
    ("CategoricalCrossentropy", {}, ONE_HOT, PROBABILITIES),
    ("CategoricalCrossentropy", {"label_smoothing": 0.2}, ONE_HOT, 2 * PROBABILITIES),
    ("CategoricalCrossentropy", {"from_logits": True}, ONE_HOT, LOGITS),
    ("CategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, ONE_HOT, LOGITS),
    ("CategoricalFocalCrossentropy", {}, ONE_HOT, PROBABILITIES),
    ("CategoricalFocalCrossentropy", {"from_logits": True, "gamma": 1.0, "alpha": 0.6}, ONE_HOT, LOGITS),
    (
        "CategoricalFocalCrossentropy",
        {"alpha": [0.2, 0.3, 0.5], "label_smoothing": 0.1},
        ONE_HOT,
        PROBABILITIES,
    ),
    ("SparseCategoricalCrossentropy", {}, CLASSES, PROBABILITIES),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, CLASSES, LOGITS),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, CLASSES[:, None], LOGITS),
    ("SparseCategoricalCrossentropy", {"from_logits": True, "ignore_class": 2}, CLASSES, LOGITS),
]
NAMES = sorted({case[0] for case in CASES})


def value_and_gradient(loss, y_true, y_pred, **call):
    function = gradients.value_and_grad(lambda p: keras.ops.sum(loss(y_true, p, **call)))
    value, gradient = function(keras.ops.convert_to_tensor(y_pred))
    return keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(gradient)


def assert_same(ours, theirs, *data, **call):
    for mine, oracle in zip(
        value_and_gradient(ours, *data, **call), value_and_gradient(theirs, *data, **call), strict=True
    ):
        np.testing.assert_allclose(mine, oracle, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "arguments", "y_true", "y_pred"), CASES)
def test_value_and_gradient_equal_keras(name, arguments, y_true, y_pred):
    make = [getattr(library, name) for library in (losses, keras.losses)]
    assert_same(*(cls(**arguments) for cls in make), y_true, y_pred)
    assert_same(*(cls(**arguments, reduction="sum") for cls in make), y_true, y_pred, sample_weight=WEIGHTS)


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "none", None])
def test_reductions_equal_keras(reduction):
    for name, y_true in (("MeanSquaredError", TARGETS), ("SparseCategoricalCrossentropy", CLASSES)):
        ours, theirs = (getattr(lib, name)(reduction=reduction) for lib in (losses, keras.losses))
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(ours(y_true, PROBABILITIES, WEIGHTS)),
            keras.ops.convert_to_numpy(theirs(y_true, PROBABILITIES, WEIGHTS)),
            rtol=1e-5,
        )


@pytest.mark.parametrize("shapes", [((4,), (4, 1)), ((4, 1), (4,)), ((2, 2, 1), (2, 2)), ((2, 2), (2, 2, 1))])
@pytest.mark.parametrize("name", ["MeanSquaredError", "BinaryCrossentropy"])
def test_a_missing_last_axis_is_no_broadcast(name, shapes):
    """(batch,) beside (batch, 1) would broadcast to (batch, batch) without a word."""
    y_true, y_pred = BITS[:, 0].reshape(shapes[0]), UNIT[:, 0].reshape(shapes[1])
    assert_same(getattr(losses, name)(), getattr(keras.losses, name)(), y_true, y_pred)


def test_ignored_class_is_outside_the_mean():
    loss = losses.SparseCategoricalCrossentropy(ignore_class=2)
    # Samples 1 and 2 remain: the mean of their two losses, not of four.
    expected = -np.log(PROBABILITIES[[1, 2], [0, 1]]).mean()
    np.testing.assert_allclose(float(loss(CLASSES, PROBABILITIES)), expected, rtol=1e-5)
    outside = np.where(CLASSES == 2, -1, CLASSES)
    loss = losses.SparseCategoricalCrossentropy(ignore_class=-1)
    np.testing.assert_allclose(float(loss(outside, PROBABILITIES)), expected, rtol=1e-5)


def test_class_axis_of_images(rng):
    """Segmentation: classes on axis 1 give what they give on the last axis."""
    logits = rng.normal(size=(2, 3, 4)).astype("float32")  # (batch, classes, pixels)
    labels = rng.integers(0, 3, (2, 4))
    moved = np.moveaxis(logits, 1, -1)
    for name, y_first, y_last in (
        ("SparseCategoricalCrossentropy", labels, labels),
        ("CategoricalCrossentropy", np.moveaxis(np.eye(3)[labels], -1, 1), np.eye(3)[labels]),
    ):
        make = getattr(losses, name)
        np.testing.assert_allclose(
            float(make(from_logits=True, axis=1)(y_first, logits)),
            float(make(from_logits=True)(y_last, moved)),
            rtol=1e-6,
        )


def test_hand_values():
    one = np.ones((1, 1), "float32")
    assert float(losses.Huber(delta=1.0)(0 * one, 0.5 * one)) == pytest.approx(0.125)
    assert float(losses.Huber(delta=1.0)(0 * one, -3 * one)) == pytest.approx(2.5)
    assert float(losses.BinaryCrossentropy(from_logits=True)(one, 0 * one)) == pytest.approx(np.log(2))
    # p = 1/2 for the right label: (1 - 1/2)^2 log 2.
    focal = losses.BinaryFocalCrossentropy(from_logits=True)
    assert float(focal(one, 0 * one)) == pytest.approx(np.log(2) / 4)
    # Smoothing 0.3 over 3 classes: labels 0.8, 0.1, 0.1; uniform prediction costs log 3 whatever the labels.
    smooth = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    label = np.array([[1.0, 0, 0]], "float32")
    assert float(smooth(label, np.zeros((1, 3), "float32"))) == pytest.approx(np.log(3))
    logits = np.array([[1.0, 0, 0]], "float32")
    assert float(smooth(label, logits)) == pytest.approx(np.log(np.e + 2) - 0.8)
    assert float(losses.KLDivergence()(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]]))) == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )
    assert float(losses.CategoricalHinge()(label, np.array([[0.2, 0.7, 0.1]], "float32"))) == pytest.approx(
        1.5
    )


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("BinaryCrossentropy", np.array([[1.0, 0.0]])),
        ("BinaryFocalCrossentropy", np.array([[1.0, 0.0]])),
        ("CategoricalCrossentropy", np.array([[1.0, 0.0]])),
        ("SparseCategoricalCrossentropy", np.array([0])),
    ],
)
def test_confident_mistakes_keep_value_and_gradient(name, label):
    """From logits of -+1000 a probability would be 0 and its gradient lost."""
    loss = getattr(losses, name)(from_logits=True)
    value, gradient = value_and_gradient(loss, label, np.array([[-500.0, 500.0]], "float32"))
    expected = 500.0 if name.startswith("Binary") else 1000.0
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    scale = 0.5 if name.startswith("Binary") else 1.0
    np.testing.assert_allclose(gradient, [[-scale, scale]], rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(classes=st.sampled_from([2, 5]), seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_cross_entropy_ignores_a_shift_of_the_logits_and_its_gradient_sums_to_zero(classes, seed, shift):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(6, classes)).astype("float32")
    labels = generator.integers(0, classes, 6)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    value, gradient = value_and_gradient(loss, labels, logits)
    shifted, _ = value_and_gradient(loss, labels, logits + np.float32(shift))
    np.testing.assert_allclose(value, shifted, rtol=1e-4)
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)
    dense = losses.CategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(float(dense(np.eye(classes)[labels], logits)), value, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_signature_defaults_and_config_are_those_of_keras(name):
    ours, theirs = getattr(losses, name), getattr(keras.losses, name)
    mine = {p.name: p.default for p in inspect.signature(ours).parameters.values()}
    oracle = {p.name: p.default for p in inspect.signature(theirs).parameters.values()}
    assert list(mine.items()) == list(oracle.items())
    assert theirs().get_config().items() <= ours().get_config().items()
    changed = {
        k: v for k, v in {"delta": 3.0, "axis": 0, "label_smoothing": 0.5, "alpha": 0.1}.items() if k in mine
    }
    again = keras.losses.deserialize(keras.losses.serialize(ours(**changed, reduction="sum", name="mine")))
    assert type(again) is ours
    assert again.get_config() == {**ours().get_config(), **changed, "reduction": "sum", "name": "mine"}


def test_fit_with_mask_in_half_precision_and_reload(tmp_path):
    """A masked sequence model under mixed_float16, saved with its loss; the loss itself stays float32."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Embedding(7, 4, mask_zero=True),
                keras.layers.Dense(7),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2]])
    model.compile(
        "sgd",
        losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    ours = model.fit(x, x, verbose=0).history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, losses.SparseCategoricalCrossentropy)
    before = loaded.evaluate(x, x, verbose=0)
    loaded.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    assert np.isfinite(ours)
    assert before == pytest.approx(loaded.evaluate(x, x, verbose=0), rel=1e-4)


@pytest.mark.parametrize("name", ["hinge", "squared_hinge", "categorical_hinge", "kl_divergence"])
def test_functions_broadcast_as_in_keras(name):
    labels, predictions = BITS[:, :1], UNIT[:, 0]
    values = [numpy_of(getattr(module, name)(labels, predictions)) for module in (losses, keras.losses)]
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("from_logits", [False, True])
def test_labels_that_are_no_class(from_logits):
    predictions = LOGITS if from_logits else PROBABILITIES

    def value(label):
        labels = np.array([2, 0, 1, label], "int32")
        return numpy_of(losses.sparse_categorical_crossentropy(labels, predictions, from_logits))

    left_out = {"jax": [-1, -100, 3, 9], "torch": [-100]}.get(keras.backend.backend(), [])
    for label in left_out:
        labels = np.array([2, 0, 1, label], "int32")
        theirs = keras.losses.sparse_categorical_crossentropy(labels, predictions, from_logits)
        np.testing.assert_allclose(value(label), numpy_of(theirs), rtol=1e-5)
        assert value(label)[-1] == 0
    loud = {"torch": [-1, 3, 9], "tensorflow": [-1, -3]}.get(keras.backend.backend(), [])
    for label in loud:  # Keras raises here, on CPU
        assert np.isnan(value(label)).tolist() == [False, False, False, True]


@pytest.mark.once
def test_errors_say_what_is_wrong():
    for function in (losses.binary_crossentropy, losses.binary_focal_crossentropy):
        with pytest.raises(ValueError, match="must have the same shape"):
            function(BITS[:, :1], UNIT)
    with pytest.raises(ValueError, match="must have the same shape"):
        losses.CategoricalCrossentropy()(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="must have the same shape"):
        losses.CategoricalCrossentropy()(np.ones((2,)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="but for the class axis"):
        losses.SparseCategoricalCrossentropy()(np.ones((3,)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="`axis` must be of type `int`"):
        losses.CategoricalCrossentropy(axis=True)(ONE_HOT, PROBABILITIES)
    with pytest.raises(ValueError, match="Invalid value for argument `reduction`"):
        losses.MeanSquaredError(reduction="average")
    with pytest.warns(SyntaxWarning, match="num_classes > 1"):
        losses.CategoricalCrossentropy()(np.ones((2, 1)), np.ones((2, 1)))
