"""Recurrent layers against Keras', against NumPy written out step by step, and against themselves."""

import inspect

import keras
import numpy as np
import pytest

import layers.recurrent as recurrent
from recipes.engine import gradients
from tests.layers.checking import assert_parity, check_layer, numpy_of, outputs_and_gradients

BATCH, TIME, FEATURES, UNITS = 3, 4, 2, 3
NAMES = ("SimpleRNN", "LSTM", "GRU")
CELLS = ("SimpleRNNCell", "LSTMCell", "GRUCell")
STATES = {"SimpleRNN": 1, "LSTM": 2, "PeepholeLSTM": 2, "GRU": 1}
# Gaps, a late start and an early end: all that a mask can do.
MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1]], "bool")


@pytest.fixture
def x(rng):
    return rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")


@pytest.fixture
def states(rng):
    return [rng.normal(size=(BATCH, UNITS)).astype("float32") for _ in range(4)]


def tensor(array):
    return keras.ops.convert_to_tensor(array)


def tensors(arrays):
    return [tensor(array) for array in arrays]


# ---------------------------------------------------------------- the same as Keras


@pytest.mark.once
@pytest.mark.parametrize("name", [*NAMES, *CELLS, "RNN", "StackedRNNCells", "Bidirectional"])
def test_signature_is_keras(name):
    def parameters(owner):
        return [(p.name, p.default) for p in inspect.signature(owner).parameters.values()]

    assert parameters(getattr(recurrent, name)) == parameters(getattr(keras.layers, name))


@pytest.mark.parametrize("name", [*NAMES, "PeepholeLSTM"])
def test_layer_check(name, x, tmp_path):
    twin = getattr(keras.layers, name, None)
    check_layer(
        lambda **extra: getattr(recurrent, name)(UNITS, return_sequences=True, **extra),
        x,
        tmp_path,
        twin=twin and (lambda **extra: twin(UNITS, return_sequences=True, **extra)),
    )


# name, options, masked: every option of every layer, half of them under a mask.
SEQUENCES = {"return_sequences": True}
CASES = [
    ("SimpleRNN", {}, True),
    ("SimpleRNN", {"go_backwards": True, "return_state": True, **SEQUENCES}, False),
    ("SimpleRNN", {"activation": "relu", "use_bias": False, **SEQUENCES}, True),
    ("SimpleRNN", {"unroll": True}, True),
    ("LSTM", {"return_state": True}, True),
    ("LSTM", {"go_backwards": True, "return_state": True, **SEQUENCES}, True),
    ("LSTM", {"use_bias": False, "unit_forget_bias": False}, False),
    ("LSTM", {"zero_output_for_mask": True, **SEQUENCES}, True),
    ("LSTM", {"activation": None, "recurrent_activation": "hard_sigmoid", **SEQUENCES}, True),
    ("LSTM", {"unroll": True, "return_state": True, "implementation": 1}, False),
    ("GRU", {}, True),
    ("GRU", {"go_backwards": True, "use_bias": False, "return_state": True, **SEQUENCES}, True),
    ("GRU", {"reset_after": False, **SEQUENCES}, True),
    ("GRU", {"reset_after": False, "use_bias": False, "activation": "relu"}, False),
    ("GRU", {"unroll": True, "zero_output_for_mask": True, **SEQUENCES}, False),
]


@pytest.mark.parametrize(("name", "options", "masked"), CASES)
def test_parity(name, options, masked, x):
    call = {"mask": tensor(MASK)} if masked else {}
    ours, theirs = (getattr(library, name)(UNITS, **options) for library in (recurrent, keras.layers))
    assert_parity(ours, theirs, x, **call)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_parity_with_initial_state_and_right_padding(name, x, states):
    call = {"mask": tensor(np.sort(MASK)[:, ::-1].copy()), "initial_state": tensors(states[: STATES[name]])}
    ours, theirs = (
        getattr(library, name)(UNITS, return_sequences=True, return_state=True)
        for library in (recurrent, keras.layers)
    )
    assert_parity(ours, theirs, x, **call)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_gradient_by_initial_state(name, x, states):
    """The state's gradient passes through masked steps and both sides of the product."""
    count, results = STATES[name], []
    for library in (recurrent, keras.layers):
        layer = getattr(library, name)(UNITS)
        layer(tensor(x), initial_state=tensors(states[:count]))
        layer.set_weights(results[0][2] if results else layer.get_weights())

        def loss(initial, layer=layer):
            return keras.ops.sum(layer(tensor(x), initial_state=initial, mask=tensor(MASK)) ** 2)

        value, by_state = gradients.compiled(gradients.value_and_grad(loss))(tensors(states[:count]))
        results.append((float(numpy_of(value)), numpy_of(by_state), layer.get_weights()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert np.abs(ours).max() > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "implementation"), [("SimpleRNNCell", 2), ("LSTMCell", 1), ("LSTMCell", 2), ("GRUCell", 1)]
)
def test_cell_parity(name, implementation, x, states):
    extra = {} if name == "SimpleRNNCell" else {"implementation": implementation}
    ours, theirs = (getattr(library, name)(UNITS, **extra) for library in (recurrent, keras.layers))
    count = STATES[name.removesuffix("Cell")]
    for cell in (ours, theirs):  # neither can be called on symbols
        cell.build(x[:, 0].shape)
    assert_parity(ours, theirs, (x[:, 0], states[:count]))
    assert ours.get_config().keys() >= theirs.get_config().keys() - {"quantization_config"}
    if count == 1:
        bare = ours(tensor(x[:, 0]), tensor(states[0]))
        np.testing.assert_array_equal(*numpy_of(bare))


def test_stacked_parity(x):
    def stack(library):
        cells = [library.LSTMCell(UNITS), library.GRUCell(2), library.SimpleRNNCell(2)]
        return library.RNN(cells, return_sequences=True, return_state=True)

    assert_parity(stack(recurrent), stack(keras.layers), x, mask=tensor(MASK))


@pytest.mark.parametrize("merge_mode", ["sum", "mul", "ave", None])
def test_bidirectional_merging(merge_mode, x):
    """The five ways to merge, on the same two outputs, which the next test holds against Keras'."""
    layer = recurrent.Bidirectional(recurrent.SimpleRNN(UNITS, return_sequences=True), merge_mode=None)
    ahead, back = numpy_of(layer(tensor(x)))
    merged = recurrent.Bidirectional(recurrent.SimpleRNN(UNITS, return_sequences=True), merge_mode=merge_mode)
    merged.build(x.shape)
    merged.set_weights(layer.get_weights())
    expected = {"sum": ahead + back, "mul": ahead * back, "ave": (ahead + back) / 2, None: [ahead, back]}
    np.testing.assert_allclose(numpy_of(merged(tensor(x))), expected[merge_mode], atol=1e-6)


@pytest.mark.parametrize("merge_mode", ["concat", None])
def test_bidirectional_parity(merge_mode, x):
    def both(library):
        return library.Bidirectional(
            library.LSTM(UNITS, return_sequences=True, return_state=True, name="rnn"), merge_mode=merge_mode
        )

    assert_parity(both(recurrent), both(keras.layers), x, mask=tensor(MASK))


def test_bidirectional_check(x, tmp_path):
    check_layer(
        lambda **extra: recurrent.Bidirectional(recurrent.GRU(UNITS, dtype=extra.get("dtype")), **extra),
        x,
        tmp_path,
        low_precision=False,
    )


def test_bidirectional_initial_state_and_backward_layer(x, states):
    def both(library):
        return library.Bidirectional(
            library.LSTM(UNITS), backward_layer=library.LSTM(UNITS, activation="relu", go_backwards=True)
        )

    assert_parity(both(recurrent), both(keras.layers), x, initial_state=tensors(states))


# ---------------------------------------------------------------- NumPy, written out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_simple(x, h, kernel, recurrent_kernel, bias):
    h = np.tanh(x @ kernel + h[0] @ recurrent_kernel + bias)
    return [h]


def numpy_lstm(x, states, kernel, recurrent_kernel, bias, peephole=np.zeros((3, UNITS))):
    h, c = states
    gate = [
        x @ kernel[:, g * UNITS : (g + 1) * UNITS]
        + h @ recurrent_kernel[:, g * UNITS : (g + 1) * UNITS]
        + bias[g * UNITS : (g + 1) * UNITS]
        for g in range(4)
    ]
    i = sigmoid(gate[0] + peephole[0] * c)
    f = sigmoid(gate[1] + peephole[1] * c)
    c = f * c + i * np.tanh(gate[2])
    o = sigmoid(gate[3] + peephole[2] * c)
    return [o * np.tanh(c), c]


def numpy_gru(x, states, kernel, recurrent_kernel, bias):
    (h,) = states
    a, b = x @ kernel + bias[0], h @ recurrent_kernel + bias[1]
    z = sigmoid(a[:, :UNITS] + b[:, :UNITS])
    r = sigmoid(a[:, UNITS : 2 * UNITS] + b[:, UNITS : 2 * UNITS])
    g = np.tanh(a[:, 2 * UNITS :] + r * b[:, 2 * UNITS :])
    return [z * h + (1 - z) * g]


NUMPY = {"SimpleRNN": numpy_simple, "LSTM": numpy_lstm, "PeepholeLSTM": numpy_lstm, "GRU": numpy_gru}


def numpy_loss(name, x, weights, mask):
    """`sum_t cos(3 t) sum(h_t)`, in double precision, with masked steps passed over."""
    states = [np.zeros((len(x), UNITS)) for _ in range(STATES[name])]
    loss = 0.0
    for t in range(x.shape[1]):
        new = NUMPY[name](x[:, t], states, *weights)
        states = [np.where(mask[:, t, None], n, o) for n, o in zip(new, states, strict=True)]
        loss += np.cos(3 * t) * states[0].sum()
    return loss


@pytest.mark.parametrize(
    ("name", "activation"), [*((name, "tanh") for name in STATES), ("PeepholeLSTM", None)]
)
def test_numpy_and_finite_differences(name, activation, x, rng):
    """Values from NumPy; gradients from its central differences, by hand-derived and by automatic rules.

    `activation=None` stands for a function that the hand-derived rule does not know but that is tanh.
    """
    layer = getattr(recurrent, name)(UNITS, activation=activation or keras.ops.tanh, return_sequences=True)
    layer.build(x.shape)
    layer.set_weights([rng.normal(size=w.shape) * 0.5 for w in layer.weights])
    weighting = np.broadcast_to(np.cos(3 * np.arange(TIME))[None, :, None], (BATCH, TIME, UNITS))
    outputs, by_weights, (by_x,) = outputs_and_gradients(layer, x, [weighting], mask=tensor(MASK))
    values = [np.asarray(w, "float64") for w in layer.get_weights()]
    assert (outputs * weighting).sum() == pytest.approx(numpy_loss(name, x, values, MASK), rel=1e-4, abs=1e-4)

    def difference(array, index):
        step = np.zeros_like(array)
        step[index] = 1e-5
        return array + step, array - step

    for position, gradient in enumerate(by_weights):
        for index in list(np.ndindex(gradient.shape))[:: max(1, gradient.size // 6)]:
            up, down = (
                numpy_loss(name, x, [*values[:position], moved, *values[position + 1 :]], MASK)
                for moved in difference(values[position], index)
            )
            assert gradient[index] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-4)
    wide = x.astype("float64")
    for index in [(0, 0, 0), (0, 2, 1), (1, 0, 0), (1, 1, 1), (2, 3, 0)]:
        up, down = (numpy_loss(name, moved, values, MASK) for moved in difference(wide, index))
        assert by_x[index] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-4)


def test_peephole_without_peepholes_is_lstm(x):
    peephole, lstm = (
        recurrent.PeepholeLSTM(UNITS, return_sequences=True),
        recurrent.LSTM(UNITS, return_sequences=True),
    )
    lstm.build(x.shape)
    peephole.build(x.shape)
    assert [w.name for w in peephole.weights] == [*(w.name for w in lstm.weights), "peephole_kernel"]
    peephole.set_weights([*lstm.get_weights(), np.zeros((3, UNITS))])
    np.testing.assert_allclose(*numpy_of([peephole(tensor(x)), lstm(tensor(x))]), atol=1e-6)


def test_unit_forget_bias():
    layer = recurrent.LSTM(2, bias_initializer="zeros")
    layer.build((1, 1, 1))
    np.testing.assert_array_equal(layer.get_weights()[2], [0, 0, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("name", STATES)
def test_second_order_gradient(name, rng):
    """d/dx of (dL/dx)^2 through the hand-derived rule agrees with differences of its own first order."""
    layer = getattr(recurrent, name)(2, return_sequences=True)
    x = rng.normal(size=(1, 3, 2)).astype("float32")
    layer(tensor(x))
    direction = rng.normal(size=x.shape).astype("float32")

    def loss(x):
        return keras.ops.sum(layer(x) ** 2)

    def slope(x):
        return keras.ops.sum(gradients.value_and_grad(loss)(x)[1] * tensor(direction))

    compiled = gradients.compiled(gradients.value_and_grad(loss))

    def first(x):
        return numpy_of(compiled(tensor(x.astype("float32")))[1])

    second = numpy_of(gradients.compiled(gradients.value_and_grad(slope))(tensor(x))[1])
    expected = (first(x + 1e-2 * direction) - first(x - 1e-2 * direction)) / 2e-2
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(second, expected, rtol=2e-2, atol=2e-3)


# ---------------------------------------------------------------- masks, time, states


@pytest.mark.parametrize(("name", "unroll"), [*((name, False) for name in STATES), ("PeepholeLSTM", True)])
def test_padding_cannot_change_anything(name, unroll, x, rng):
    layer = getattr(recurrent, name)(UNITS, return_sequences=True, return_state=True, unroll=unroll)
    noise = rng.normal(size=(BATCH, 2, FEATURES)).astype("float32") * 100
    padded = np.concatenate([noise[:, :1], x, noise[:, 1:]], axis=1)
    mask = np.array([[0, *[1] * TIME, 0]] * BATCH, "bool")
    plain, *states = numpy_of(layer(tensor(x)))
    outputs, *padded_states = numpy_of(layer(tensor(padded), mask=tensor(mask)))
    np.testing.assert_allclose(outputs[:, 1:-1], plain, atol=1e-6)
    np.testing.assert_array_equal(outputs[:, 0], 0)
    np.testing.assert_allclose(outputs[:, -1], plain[:, -1], atol=1e-6)
    for one, other in zip(padded_states, states, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    _, _, (by_input,) = outputs_and_gradients(layer, padded, mask=tensor(mask))
    assert np.abs(by_input[:, [0, -1]]).max() == 0 and np.abs(by_input[:, 1:-1]).min() > 0


@pytest.mark.parametrize("unroll", [False, True])
def test_output_before_the_first_step_is_zero_on_every_backend(unroll, x, states):
    """Keras gives the initial state there on JAX and zero elsewhere."""
    layer = recurrent.GRU(UNITS, return_sequences=True, unroll=unroll)
    outputs = numpy_of(layer(tensor(x), initial_state=tensor(states[0]), mask=tensor(MASK)))
    np.testing.assert_array_equal(outputs[1, 0], 0)
    nothing = recurrent.GRU(UNITS, return_state=True, unroll=unroll)
    last, state = nothing(tensor(x), initial_state=tensor(states[0]), mask=tensor(np.zeros_like(MASK)))
    np.testing.assert_array_equal(numpy_of(last), 0)
    np.testing.assert_array_equal(numpy_of(state), states[0])


@pytest.mark.parametrize("name", STATES)
def test_the_future_cannot_change_the_past(name, x):
    layer = getattr(recurrent, name)(UNITS, return_sequences=True)
    changed = x.copy()
    changed[:, 2:] += 1
    one, other = numpy_of([layer(tensor(x)), layer(tensor(changed))])
    np.testing.assert_array_equal(one[:, :2], other[:, :2])
    assert np.abs(one[:, 2:] - other[:, 2:]).min() > 0


@pytest.mark.parametrize("name", STATES)
def test_stateful_is_one_long_sequence(name, x):
    layer = getattr(recurrent, name)(UNITS, return_sequences=True, stateful=True)
    plain = getattr(recurrent, name)(UNITS, return_sequences=True)
    parts = [numpy_of(layer(tensor(part))) for part in (x[:, :1], x[:, 1:3], x[:, 3:])]
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), numpy_of(plain(tensor(x))), atol=1e-6)
    layer.reset_state()
    np.testing.assert_allclose(numpy_of(layer(tensor(x[:, :1]))), parts[0], atol=1e-6)
    with pytest.raises(ValueError, match="Expected batch size: 3"):
        layer(tensor(x[:1]))


def test_stateful_in_a_compiled_model(x):
    """The states survive `predict` and `fit`, on JAX too, and are no weights."""
    model = keras.Sequential([keras.Input(batch_shape=x.shape), recurrent.LSTM(UNITS, stateful=True)])
    (layer,) = model.layers
    assert [w.name for w in layer.weights] == ["kernel", "recurrent_kernel", "bias"]
    first, second = (model.predict(x, verbose=0) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(numpy_of(layer.states[0].value), second, atol=1e-6)
    model.compile("sgd", "mse")
    model.fit(x, first, batch_size=BATCH, verbose=0, shuffle=False)
    assert np.abs(numpy_of(layer.states[0].value) - second).max() > 1e-5


@pytest.mark.parametrize(
    ("name", "dropout"),
    [("SimpleRNN", {"dropout": 0.5, "recurrent_dropout": 0.3}), ("LSTM", {"dropout": 0.5}),
     ("GRU", {"dropout": 0.3, "recurrent_dropout": 0.5})],
)  # fmt: skip
def test_dropout_parity(name, dropout, x):
    """The same seed drops the same units as Keras."""
    ours, theirs = (
        getattr(library, name)(8, seed=3, return_sequences=True, **dropout)
        for library in (recurrent, keras.layers)
    )
    ours.build(x.shape)
    theirs.build(x.shape)
    ours.set_weights(theirs.get_weights())
    one, other = numpy_of([ours(tensor(x), training=True), theirs(tensor(x), training=True)])
    np.testing.assert_allclose(one, other, atol=1e-5)
    inference = numpy_of(ours(tensor(x)))
    np.testing.assert_array_equal(inference, numpy_of(ours(tensor(x))))
    assert np.abs(one - inference).max() > 1e-3


def test_dropout_mask_is_constant_over_time():
    """Outputs of a layer that only copies its input show the mask: whole columns, zero or doubled."""
    layer = recurrent.SimpleRNN(
        16, activation=None, kernel_initializer="identity", recurrent_initializer="zeros", dropout=0.5,
        return_sequences=True,
    )  # fmt: skip
    ones = tensor(np.ones((2, 5, 16), "float32"))
    one, other = (numpy_of(layer(ones, training=True)) for _ in range(2))
    assert set(np.unique(one)) == {0.0, 2.0}
    np.testing.assert_array_equal(one, np.repeat(one[:, :1], 5, axis=1))
    assert (one != other).any(), "a new sequence draws a new mask"


def test_dropout_anew_for_every_gate(x):
    """Implementation 1 drops other inputs for every gate; Keras' own LSTM fails on this combination."""
    layer = recurrent.LSTM(UNITS, dropout=0.5, implementation=1, seed=1)
    layer.build(x.shape)
    masks = numpy_of(layer.cell.get_dropout_mask(tensor(np.ones((8, 8), "float32"))))
    assert len(masks) == 4 and all((one != masks[0]).any() for one in masks[1:])
    layer.cell.reset_dropout_mask()
    trained, plain = numpy_of([layer(tensor(x), training=True), layer(tensor(x))])
    assert np.isfinite(trained).all() and np.abs(trained - plain).max() > 1e-3


# ---------------------------------------------------------------- any cell, any model


@keras.saving.register_keras_serializable(package="tests")
class Accumulator(keras.layers.Layer):
    """The running sum and a count, whose output is no state."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = [FEATURES, 1]
        self.output_size = FEATURES

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs, states):
        total, count = states
        total = total + self.scale * inputs
        return total / (count + 1), [total, count + 1]


@pytest.mark.parametrize("every", [False, True])
def test_any_cell(every, x):
    layer = recurrent.RNN(Accumulator(), return_sequences=every, return_state=True)
    outputs, total, count = numpy_of(layer(tensor(x), mask=tensor(MASK)))
    kept = np.where(MASK[..., None], x, 0)
    counts = np.cumsum(MASK, axis=1)[..., None]
    expected = np.cumsum(kept, axis=1) / np.maximum(counts, 1)
    np.testing.assert_allclose(outputs, expected if every else expected[:, -1], atol=1e-6)
    np.testing.assert_allclose(total, kept.sum(1), atol=1e-6)
    np.testing.assert_array_equal(count, MASK.sum(1)[:, None])


def test_any_cell_parity(x):
    ours, theirs = (
        library.RNN(Accumulator(name="cell"), return_sequences=True) for library in (recurrent, keras.layers)
    )
    assert_parity(ours, theirs, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: recurrent.PeepholeLSTM(UNITS, return_sequences=True),
        lambda: recurrent.GRU(UNITS, reset_after=False, return_sequences=True),
        lambda: recurrent.RNN(recurrent.StackedRNNCells([recurrent.LSTMCell(2), recurrent.GRUCell(UNITS)])),
    ],
    ids=["by rule", "step by step", "stacked"],
)
def test_training_compiled_with_unknown_length(make, x, rng):
    """`fit` with XLA where there is one, on sequences of two lengths and masks from an embedding."""
    model = keras.Sequential(
        [keras.Input((None,), dtype="int32"), keras.layers.Embedding(5, 2, mask_zero=True), make()]
    )
    model.compile("sgd", "mse", jit_compile=keras.backend.backend() != "torch")
    for length in (3, 5):
        tokens = rng.integers(0, 5, size=(2, length))
        target = np.ones((2, *model.compute_output_shape((2, length))[1:]), "float32")
        before = [np.array(w) for w in model.get_weights()]
        model.fit(tokens, target, verbose=0)
        assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip_with_everything(name):
    layer = getattr(recurrent, name)(
        UNITS, kernel_regularizer="l2", bias_constraint="non_neg", dropout=0.1, seed=5, go_backwards=True,
        activity_regularizer="l1", dtype="mixed_float16", trainable=False, zero_output_for_mask=True,
    )  # fmt: skip
    config = layer.get_config()
    twin = getattr(keras.layers, name)(UNITS).get_config()
    assert twin.keys() - {"quantization_config"} <= config.keys()
    clone = type(layer).from_config(config)
    assert clone.get_config() == config
    assert clone.cell.compute_dtype == "float16" and not clone.cell.trainable


def test_regularizer_of_the_output_counts(x):
    layer = recurrent.SimpleRNN(UNITS, activity_regularizer=keras.regularizers.L1(0.5))
    output = numpy_of(layer(tensor(x)))
    assert float(numpy_of(layer.losses[0])) == pytest.approx(0.5 * np.abs(output).sum() / BATCH, rel=1e-5)


def test_errors(x):
    for call, message in (
        (lambda: recurrent.LSTMCell(0), "expected a positive integer"),
        (lambda: recurrent.RNN(object()), "should have a `call` method"),
        (lambda: recurrent.RNN(keras.layers.Dense(1)), "`state_size` attribute"),
        (lambda: recurrent.StackedRNNCells([keras.layers.Dense(1)]), "`state_size` attribute"),
        (lambda: recurrent.LSTM(2, use_cudnn="yes"), "use_cudnn"),
        (lambda: recurrent.LSTM(2, use_cudnn=True)(tensor(x)), "cuDNN is not supported"),
        (lambda: recurrent.LSTM(2, unroll=True).call(keras.Input((None, 2))), "Cannot unroll"),
        (lambda: recurrent.LSTM(2, stateful=True)(keras.Input((3, 2))), "batch size must be static"),
        (lambda: recurrent.Bidirectional(3), "keras.layers.Layer"),
        (lambda: recurrent.Bidirectional(recurrent.GRU(2), merge_mode="max"), "Invalid merge mode"),
        (
            lambda: recurrent.Bidirectional(recurrent.GRU(2), backward_layer=recurrent.GRU(2)),
            "different `go_backwards`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
