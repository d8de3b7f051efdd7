"""Every optimizer against every property: Keras' steps, convergence, no recompilation, saving, clipping."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import optimizers, schedules
from layers.optimizers import base
from recipes.engine.gradients import compiled, compiled_step

# name, arguments, and learning rates at which 150 steps solve the quadratic and the Rosenbrock valley
CASES = {
    "SGD": ("SGD", {}, 0.15, 1.5e-3),
    "momentum": ("SGD", {"momentum": 0.9}, 0.05, 1e-3),
    "Nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}, 0.05, 1e-3),
    "Adagrad": ("Adagrad", {}, 0.5, 0.3),
    "RMSprop": ("RMSprop", {}, 0.03, 0.02),
    "RMSprop centered": ("RMSprop", {"centered": True, "momentum": 0.5}, 0.01, 0.01),
    "Adam": ("Adam", {}, 0.1, 0.1),
    "amsgrad": ("Adam", {"amsgrad": True}, 0.1, 0.1),
    "AdamW": ("AdamW", {}, 0.1, 0.1),
    "Nadam": ("Nadam", {}, 0.1, 0.1),
    # Steps of one size never settle: the rate has to fall.
    "Lion": ("Lion", {}, schedules.CosineDecay(0.05, 150), 0.01),
}
SHARED = {
    "plain": {},
    "decay": {"weight_decay": 0.05},
    "norm": {"clipnorm": 0.5},
    "global norm": {"global_clipnorm": 0.7},
    "value": {"clipvalue": 0.3},
    "no limit": {"clipvalue": -0.3},
    "averaged": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3},
    "accumulated": {"gradient_accumulation_steps": 2},
    "scaled": {"loss_scale_factor": 4.0},
}
SHAPES = [(3, 4), (4,), (2, 3, 2), ()]

every = pytest.mark.parametrize("case", CASES)


def make(case, library=optimizers, learning_rate=0.01, **more):
    name, arguments, _, _ = CASES[case]
    return getattr(library, name)(learning_rate=learning_rate, **{**arguments, **more})


def numpy_of(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def fresh_variables(shapes=SHAPES):
    rng = np.random.default_rng(1)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=f"v{i}")
        for i, shape in enumerate(shapes)
    ]


def gradients_of_step(step, shapes=SHAPES):
    rng = np.random.default_rng(100 + step)
    return [keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for shape in shapes]


def assert_steps_equal(ours, theirs, steps, shapes=SHAPES, gradients=gradients_of_step):
    """Both optimizers from the same weights through the same gradients: equal after every step."""
    pair = [(ours, fresh_variables(shapes)), (theirs, fresh_variables(shapes))]
    for step in range(steps):
        for optimizer, variables in pair:
            optimizer.apply(gradients(step, shapes), variables)
        for mine, oracle in zip(*(variables for _, variables in pair), strict=True):
            np.testing.assert_allclose(
                numpy_of(mine), numpy_of(oracle), rtol=1e-5, atol=1e-6, err_msg=f"step {step}"
            )
    for mine, oracle in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(
            numpy_of(mine), numpy_of(oracle), rtol=1e-5, atol=1e-6, err_msg=oracle.name
        )


@every
def test_twenty_steps_equal_keras(case):
    ours, theirs = make(case), make(case, keras.optimizers)
    assert_steps_equal(ours, theirs, 20)
    unnamed = {v.name for v in theirs.variables if v.name.startswith("variable")}  # Nadam's product
    for mine, oracle in zip(ours.variables, theirs.variables, strict=True):
        assert mine.name == oracle.name or oracle.name in unnamed


@pytest.mark.parametrize("shared", list(SHARED)[1:])
@pytest.mark.parametrize("case", ["momentum", "Adam", "Nadam"])
def test_what_the_base_class_does_equals_keras(case, shared):
    ours, theirs = (make(case, library, **SHARED[shared]) for library in (optimizers, keras.optimizers))
    assert_steps_equal(ours, theirs, 5)


def test_a_schedule_equals_keras():
    rates = {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5}
    assert_steps_equal(
        optimizers.Adam(schedules.ExponentialDecay(**rates)),
        keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(**rates)),
        6,
    )


@pytest.mark.parametrize("case", ["SGD", "amsgrad", "RMSprop centered", "Lion"])
def test_blocks_and_transposed_gradients_change_nothing(case, monkeypatch):
    """On torch's CPU large variables are updated block by block; here a block is five elements."""
    monkeypatch.setattr(base, "BLOCK", 5)
    shapes = [(7, 3), (11,), (2, 3, 4), (1, 13)]

    def transposed(step, shapes):
        turned = gradients_of_step(step, [shape[::-1] for shape in shapes])
        return [keras.ops.transpose(gradient) for gradient in turned]

    assert_steps_equal(make(case), make(case, keras.optimizers), 3, shapes, transposed)


def minimize(optimizer, gradient, start, steps):
    weight = keras.Variable(np.asarray(start, "float32"))
    optimizer.build([weight])
    variables = [weight, *optimizer.variables]
    step = compiled_step(lambda slope: optimizer.apply([slope], [weight]), variables)
    for _ in range(steps):
        step(gradient(numpy_of(weight).astype("float64")).astype("float32"))
    return numpy_of(weight)


@every
def test_converges_on_a_quadratic(case):
    """f(x) = x . A x / 2 from f = 3.2, condition number 10, the axes turned."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    matrix = turn @ np.diag([1.0, 10.0]) @ turn.T
    x = minimize(make(case, learning_rate=CASES[case][2]), lambda w: matrix @ w, [1.0, 1.5], 150)
    assert 0.5 * x @ matrix @ x < 0.01


@every
def test_converges_on_rosenbrock(case):
    """f(x, y) = (1 - x)^2 + 100 (y - x^2)^2 from (-0.5, 0.5), f = 8.5: into the valley and along it."""

    def gradient(w):
        x, y = w
        return np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])

    x, y = minimize(make(case, learning_rate=CASES[case][3]), gradient, [-0.5, 0.5], 150)
    assert (1 - x) ** 2 + 100 * (y - x * x) ** 2 < 2.0
    assert abs(y - x * x) < 0.1


@every
def test_fit_changes_rate_without_recompiling_and_reloads(case, tmp_path):
    calls = []

    def loss(y_true, y_pred):
        calls.append(1)
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    optimizer = make(case)
    model.compile(optimizer, loss, jit_compile=keras.config.backend() == "jax")
    x, y = np.array([[0, 1], [2, 3], [3, 0]] * 2), np.ones((6, 1), "float32")
    before = model.get_weights()
    model.fit(x, y, batch_size=3, verbose=0, shuffle=False)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(before, model.get_weights(), strict=True))

    traces, moved = len(calls), model.get_weights()
    optimizer.learning_rate = 0.0
    model.fit(x, y, batch_size=3, verbose=0, shuffle=False)
    if keras.config.backend() != "torch":
        assert len(calls) == traces, "recompiled"
    if case in ("SGD", "Adagrad", "RMSprop", "Adam", "amsgrad", "AdamW", "Nadam", "Lion"):
        # No momentum made of earlier steps: at rate zero nothing moves.
        for a, b in zip(moved, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"loss": loss})
    assert type(loaded.optimizer) is type(optimizer)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    for a, b in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy_of(a), numpy_of(b))


@every
def test_config_and_defaults_are_those_of_keras(case):
    name, arguments, _, _ = CASES[case]
    ours, theirs = (getattr(library, name)(**arguments) for library in (optimizers, keras.optimizers))
    mine, oracle = ours.get_config(), theirs.get_config()
    assert {**mine, "name": ""} == {**oracle, "name": ""}
    described = json.loads(json.dumps(keras.optimizers.serialize(ours)))
    assert keras.optimizers.deserialize(described).get_config() == mine
    everything = {
        **oracle,
        "clipnorm": 1.0,
        "use_ema": True,
        "gradient_accumulation_steps": 3,
        "name": "mine",
    }
    assert getattr(optimizers, name)(**everything).get_config() == everything


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="Keras refuses stateless_apply on TensorFlow"
)
@every
def test_stateless_apply_equals_apply_and_leaves_its_inputs_alone(case):
    stateful, stateless = make(case), make(case)
    moved, still = fresh_variables(), fresh_variables()
    stateless.build(still)
    stateful.apply(gradients_of_step(0), moved)
    weights = [keras.ops.copy(v) for v in still]
    state = [keras.ops.copy(v) for v in stateless.variables]
    copies = [numpy_of(t).copy() for t in (*weights, *state)]
    new_weights, new_state = stateless.stateless_apply(state, gradients_of_step(0), weights)
    for tensor, copy in zip((*weights, *state), copies, strict=True):
        np.testing.assert_array_equal(numpy_of(tensor), copy)
    for variable, original in zip(still, fresh_variables(), strict=True):
        np.testing.assert_array_equal(numpy_of(variable), numpy_of(original))
    for new, expected in zip((*new_weights, *new_state), (*moved, *stateful.variables), strict=True):
        np.testing.assert_allclose(numpy_of(new), numpy_of(expected), rtol=1e-6, atol=1e-7)


@every
def test_the_caller_keeps_his_gradients(case):
    gradients = gradients_of_step(0)
    copies = [numpy_of(g).copy() for g in gradients]
    make(case, clipvalue=None).apply(gradients, fresh_variables())
    for gradient, copy in zip(gradients, copies, strict=True):
        np.testing.assert_array_equal(numpy_of(gradient), copy)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sparse gradients")
@pytest.mark.parametrize("case", ["SGD", "momentum", "Adam"])
@pytest.mark.parametrize("shared", ["plain", "decay", "norm", "global norm", "value"])
def test_sparse_gradients_equal_dense_ones(case, shared):
    import tensorflow as tf

    values, rows = np.array([[1.0, -2.0], [0.5, 0.5], [3.0, 1.0]], "float32"), [2, 0, 2]
    dense = np.zeros((4, 2), "float32")
    np.add.at(dense, rows, values)
    sparse = tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant([4, 2]))
    results = []
    for gradient in (sparse, tf.constant(dense)):
        variable = keras.Variable(np.ones((4, 2), "float32"))
        optimizer = make(case, **SHARED[shared])
        for _ in range(3):
            optimizer.apply([gradient], [variable])
        results.append(numpy_of(variable))
    np.testing.assert_allclose(*results, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["Adam", "Nadam", "RMSprop", "Lion"])
def test_low_precision_variables_still_move(case, dtype):
    """0.999 is 1 in bfloat16: a bias correction computed there would be 0 / 0."""
    variable = keras.Variable(np.ones(3), dtype=dtype)
    optimizer = (
        make(case, learning_rate=0.125, epsilon=1e-3) if case != "Lion" else make(case, learning_rate=0.125)
    )
    optimizer.apply([keras.ops.convert_to_tensor(np.array([1.0, -1.0, 2.0]), dtype=dtype)], [variable])
    moved = numpy_of(keras.ops.cast(variable, "float32"))
    assert np.isfinite(moved).all()
    assert (np.sign(moved - 1) == [-1, 1, -1]).all()


def test_loss_scaling_cooperates():
    """The scale comes off before the step; a step with infinite gradients is left out."""
    variable = keras.Variable(np.ones(2, "float32"))
    scaled = keras.optimizers.LossScaleOptimizer(optimizers.SGD(0.5), initial_scale=8.0)
    scaled.build([variable])
    finite, infinite = (
        keras.ops.convert_to_tensor(np.array(values, "float32")) for values in ([8.0, 16.0], [np.inf, 1.0])
    )
    if keras.config.backend() == "jax":
        # Keras' own LossScaleOptimizer works on JAX within a compiled step only.
        step = compiled(scaled.stateless_apply)
        values, state = [variable.value], [each.value for each in scaled.variables]
        for gradient in (finite, infinite):
            values, state = step(state, [gradient], values)
            np.testing.assert_allclose(numpy_of(values[0]), [0.5, 0.0])
    else:
        for gradient in (finite, infinite):
            scaled.apply([gradient], [variable])
            np.testing.assert_allclose(numpy_of(variable), [0.5, 0.0])


def test_first_steps_by_hand():
    def first_step(optimizer, gradient=2.0, weight=1.0):
        variable = keras.Variable(np.array([weight], "float32"))
        optimizer.apply([keras.ops.convert_to_tensor(np.array([gradient], "float32"))], [variable])
        return float(numpy_of(variable)[0])

    assert first_step(optimizers.SGD(0.1)) == pytest.approx(0.8)
    assert first_step(optimizers.SGD(0.1, momentum=0.9)) == pytest.approx(0.8)
    # m = -0.2, then w + 0.9 m - 0.2
    assert first_step(optimizers.SGD(0.1, momentum=0.9, nesterov=True)) == pytest.approx(0.62)
    # Adam's first step is the learning rate, whatever the gradient.
    assert first_step(optimizers.Adam(0.1), 2.0) == pytest.approx(0.9, abs=1e-6)
    assert first_step(optimizers.Adam(0.1), 1e-3) == pytest.approx(0.9, abs=1e-3)
    assert first_step(optimizers.Lion(0.1), 1e-3) == pytest.approx(0.9)
    # v = 0.1 * 4: step 0.1 * 2 / sqrt(0.4)
    assert first_step(optimizers.RMSprop(0.1)) == pytest.approx(1 - 0.2 / np.sqrt(0.4), abs=1e-6)
    # a = 0.1 + 4: step 0.1 * 2 / sqrt(4.1)
    assert first_step(optimizers.Adagrad(0.1)) == pytest.approx(1 - 0.2 / np.sqrt(4.1), abs=1e-6)
    # No gradient: only the decay, 1 - 0.1 * 0.5.
    assert first_step(optimizers.AdamW(0.1, weight_decay=0.5), 0.0) == pytest.approx(0.95)


def test_decoupled_decay_is_l2_for_sgd_and_not_for_adam():
    """L2 adds decay * w to the gradient. Two equal weights, one with gradients 100 times the other's."""

    def shrunk(make_optimizer, l2, decay):
        variable = keras.Variable(np.array([1.0, 1.0], "float32"))
        optimizer = make_optimizer(weight_decay=decay)
        for step in range(10):
            noise = np.array([1.0, 100.0]) * (-1.0) ** step  # no drift of its own
            slope = (noise + l2 * numpy_of(variable)).astype("float32")
            optimizer.apply([keras.ops.convert_to_tensor(slope)], [variable])
        return numpy_of(variable)

    sgd = {"l2": 0.1, "decay": None}, {"l2": 0.0, "decay": 0.1}
    penalty, decoupled = (shrunk(lambda **more: optimizers.SGD(0.1, **more), **kind) for kind in sgd)
    # Ten alternating steps: equal up to the order of decay and step, both decay 1 to 0.99^10 = 0.904.
    np.testing.assert_allclose(penalty, decoupled, rtol=1e-4)

    def adam(**more):
        return optimizers.Adam(1e-3, epsilon=1e-3, **more)

    plain = shrunk(adam, 0.0, None)
    by_penalty = plain - shrunk(adam, 0.5, None)
    by_decay = plain - shrunk(adam, 0.0, 0.5)
    # Decoupled: both by 1 - (1 - 1e-3 * 0.5)^10 = 0.005. By penalty: the second, divided by its larger root,
    # by a hundredth of the first.
    np.testing.assert_allclose(by_decay, 0.005, rtol=0.02)
    assert by_penalty[1] < 0.05 * by_penalty[0]


def test_clipping_by_hand():
    three_four = keras.ops.convert_to_tensor(np.array([3.0, -4.0], "float32"))
    np.testing.assert_allclose(numpy_of(optimizers.clip_by_value(three_four, 3.5)), [3.0, -3.5])
    np.testing.assert_allclose(numpy_of(optimizers.clip_by_norm(three_four, 1.0)), [0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(numpy_of(optimizers.clip_by_norm(three_four, 6.0)), [3.0, -4.0])
    np.testing.assert_array_equal(numpy_of(optimizers.clip_by_norm(0 * three_four, 1.0)), [0.0, 0.0])
    twelve = keras.ops.convert_to_tensor(np.array([[12.0]], "float32"))
    assert float(optimizers.global_norm([three_four, None, twelve])) == pytest.approx(13.0)
    first, none, second = optimizers.clip_by_global_norm([three_four, None, twelve], 6.5)
    np.testing.assert_allclose(numpy_of(first), [1.5, -2.0], rtol=1e-6)
    np.testing.assert_allclose(numpy_of(second), [[6.0]], rtol=1e-6)
    assert none is None
    broken = optimizers.clip_by_global_norm([three_four, np.inf * twelve], 1.0)
    assert all(np.isnan(numpy_of(gradient)).all() for gradient in broken)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=3), st.floats(0.1, 10))
def test_global_clipping_keeps_the_direction_of_any_shapes(shapes, limit):
    gradients = gradients_of_step(0, [tuple(shape) for shape in shapes])
    clipped = optimizers.clip_by_global_norm(gradients, limit)
    before, after = (np.concatenate([numpy_of(g).ravel() for g in each]) for each in (gradients, clipped))
    assert np.linalg.norm(after) <= limit * (1 + 1e-5)
    np.testing.assert_allclose(after, before * min(1.0, limit / np.linalg.norm(before)), rtol=1e-4)


def test_variables_without_gradient_stay():
    variables = fresh_variables()
    optimizer = optimizers.Adam(0.1, global_clipnorm=1.0)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, *gradients_of_step(0)[1:]], variables)
    original = fresh_variables()
    np.testing.assert_array_equal(numpy_of(variables[0]), numpy_of(original[0]))
    assert np.abs(numpy_of(variables[1]) - numpy_of(original[1])).min() > 1e-3


def test_decay_excludes_what_it_is_told_to():
    variables = [keras.Variable(np.ones(2, "float32"), name=name) for name in ("kernel", "bias")]
    optimizer = optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([keras.ops.zeros((2,))] * 2, variables)
    np.testing.assert_allclose(numpy_of(variables[0]), 0.95)
    np.testing.assert_array_equal(numpy_of(variables[1]), 1.0)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="`momentum` must be a float"):
        optimizers.SGD(momentum=2.0)
    with pytest.raises(ValueError, match="Argument `beta_1`"):
        optimizers.Lion(beta_1=0.0)
    with pytest.raises(ValueError, match="`weight_decay` must be a float"):
        optimizers.AdamW(weight_decay=None)
    with pytest.raises(ValueError, match="not recognized"):
        optimizers.Adam(beta_3=0.9)
    with pytest.raises(ValueError, match="Only one of `clipnorm`"):
        optimizers.Adam(clipnorm=1.0, clipvalue=1.0)
    with pytest.raises(ValueError, match="should be float"):
        optimizers.Adam(learning_rate="fast")
    optimizer = optimizers.Adam()
    optimizer.build(fresh_variables())
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(gradients_of_step(0), fresh_variables())
