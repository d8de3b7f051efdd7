"""The portable gradient against what calculus says, on each backend."""

import keras
import numpy as np
import pytest
from keras import ops

import layers
from recipes.engine import gradients

BLOCKS = {
    "basic": lambda: layers.BasicBlock(6, 2, shortcut="projection", drop_rate=0.3),
    "bottleneck": lambda: layers.Bottleneck(3, shortcut="projection"),
    "pre-activation": lambda: layers.PreActivationBlock(6, drop_rate=0.3),
    "dense": lambda: layers.DenseBlock(2, 3, dropout_rate=0.3),
    "transition": lambda: layers.TransitionBlock(),
    "inception": lambda: layers.InceptionModule(2, 2, 3, 2, 3, 2, batch_normalization=True),
    "inverted": lambda: layers.MBConv(3, drop_rate=0.3),
}


def as_numpy(nest):
    return keras.tree.map_structure(ops.convert_to_numpy, nest)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, rtol=tolerance, atol=tolerance)


def test_value_and_gradient_of_a_nest(rng):
    a, b = (rng.normal(size=(3, 2)).astype("float32") for _ in range(2))
    arguments = {"a": ops.convert_to_tensor(a), "b": [ops.convert_to_tensor(b)]}
    value, gradient = gradients.value_and_grad(lambda p: ops.sum(p["a"] ** 2 * p["b"][0]))(arguments)
    close(value, (a**2 * b).sum())
    close(gradient["a"], 2 * a * b)
    close(gradient["b"][0], a**2)


def test_auxiliary_output_and_argnums(rng):
    x, y = (ops.convert_to_tensor(rng.normal(size=4).astype("float32")) for _ in range(2))
    (value, aux), gradient = gradients.value_and_grad(
        lambda x, y: (ops.sum(x * y), {"product": x * y}), argnums=1, has_aux=True
    )(x, y)
    close(gradient, as_numpy(x))
    close(aux["product"], as_numpy(x) * as_numpy(y))
    close(value, (as_numpy(x) * as_numpy(y)).sum())


def test_what_does_not_matter_has_gradient_zero():
    _, gradient = gradients.value_and_grad(lambda p: ops.sum(p[0] ** 2))([ops.ones(2), ops.ones(3)])
    close(gradient[1], np.zeros(3))


def test_second_order_nests(rng):
    """d/dx |d(sum sin x)/dx|^2 = -2 sin x cos x: a gradient penalty in small."""
    x = rng.normal(size=5).astype("float32")
    inner = gradients.value_and_grad(lambda x: ops.sum(ops.sin(x)))
    penalty = gradients.value_and_grad(lambda x: ops.sum(inner(x)[1] ** 2))
    value, gradient = penalty(ops.convert_to_tensor(x))
    close(value, (np.cos(x) ** 2).sum())
    close(gradient, -2 * np.sin(x) * np.cos(x))


def test_jacobian_of_a_matrix_product(rng):
    w, x = rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=2).astype("float32")
    result = gradients.jacobian(lambda p: ops.matmul(p["w"], p["x"]))(
        {"w": ops.convert_to_tensor(w), "x": ops.convert_to_tensor(x)}
    )
    close(result["x"], w)
    close(result["w"], np.einsum("ij,k->ijk", np.eye(3), x))


def test_hessian_as_a_jacobian_of_a_gradient(rng):
    x = rng.normal(size=3).astype("float32")
    gradient = gradients.value_and_grad(lambda x: ops.prod(x))
    hessian = gradients.jacobian(lambda x: gradient(x)[1])(ops.convert_to_tensor(x))
    expected = [[0, x[2], x[1]], [x[2], 0, x[0]], [x[1], x[0], 0]]
    close(hessian, np.array(expected, "float32"))


def test_compiled_gives_the_same_and_keeps_up_with_new_values(rng):
    function = gradients.compiled(gradients.value_and_grad(lambda x, y: ops.sum(x**3 * y)))
    for _ in range(2):
        x, y = (rng.normal(size=4).astype("float32") for _ in range(2))
        value, gradient = function(ops.convert_to_tensor(x), ops.convert_to_tensor(y))
        close(value, (x**3 * y).sum(), 1e-4)
        close(gradient, 3 * x**2 * y, 1e-4)


def test_a_model_as_a_pure_function(rng):
    """A training step by hand: state comes back as a value, the model stays as it was."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    apply = gradients.functional(model)
    trainable, state = gradients.variables_of(model)
    x = ops.convert_to_tensor(rng.normal(size=(8, 4)).astype("float32"))
    before = [w.copy() for w in model.get_weights()]

    def loss(trainable, state, x):
        outputs, state = apply(trainable, state, x, training=True)
        return ops.sum(outputs**4), state

    (_, new_state), gradient = gradients.value_and_grad(loss, has_aux=True)(trainable, state, x)
    assert [g.shape for g in gradient] == [tuple(v.shape) for v in model.trainable_variables]
    assert any(np.abs(as_numpy(a) - as_numpy(b)).max() > 0 for a, b in zip(state, new_state, strict=True))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # Finite differences in the direction of the gradient.
    norm = float(sum(ops.convert_to_numpy(ops.sum(g**2)) for g in gradient)) ** 0.5
    h = 1e-2
    plus, minus = (
        float(
            ops.convert_to_numpy(
                loss([w + s * h * g / norm for w, g in zip(trainable, gradient, strict=True)], state, x)[0]
            )
        )
        for s in (1, -1)
    )
    assert abs((plus - minus) / (2 * h) - norm) < 0.01 * norm


def test_second_order_through_our_batch_normalization(rng):
    """TensorFlow's own moments are wrong here; ours must agree with finite differences."""
    import layers

    layer = layers.BatchNormalization()
    layer.build((None, 3))
    apply = gradients.functional(layer)
    trainable, state = gradients.variables_of(layer)
    x = rng.normal(size=(6, 3)).astype("float32")
    weight = ops.convert_to_tensor(rng.normal(size=(6, 3)).astype("float32"))

    def penalty(x):
        score = gradients.value_and_grad(
            lambda x: ops.sum(apply(trainable, state, x, training=True)[0] ** 3 * weight)
        )
        return ops.sum(score(x)[1] ** 2)

    _, gradient = gradients.value_and_grad(penalty)(ops.convert_to_tensor(x))
    direction = rng.normal(size=x.shape).astype("float32")
    h = 2e-3
    plus, minus = (
        float(ops.convert_to_numpy(penalty(ops.convert_to_tensor(x + s * h * direction)))) for s in (1, -1)
    )
    numeric = (plus - minus) / (2 * h)
    assert abs(numeric - (as_numpy(gradient) * direction).sum()) < 0.02 * max(1, abs(numeric))


@pytest.mark.parametrize("block", BLOCKS)
def test_recomputed_blocks_learn_the_same(block, monkeypatch, rng):
    """Losses, weights, batch statistics, moved once a step, and random numbers, after three steps."""
    images, targets = (rng.normal(1.0, size=n).astype("float32") for n in ((8, 4, 4, 3), (8, 1)))
    calls, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: calls.append(1) or remat(function))

    def learned(recomputed):
        keras.utils.set_random_seed(1)
        head = [layers.GlobalAveragePooling2D(), layers.Dense(1)]
        model = keras.Sequential([keras.Input((4, 4, 3)), BLOCKS[block](), *head])
        if recomputed:
            gradients.recompute_blocks(model)
        optimizer = layers.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)

        def step(x, y):
            value, slopes = gradients.by_variables(
                lambda: ops.mean(ops.square(y - model(x, training=True))), model.trainable_variables
            )
            gradients.update(optimizer, slopes)
            return value

        step = gradients.compiled_step(step, [*model.variables, *optimizer.variables])
        losses = [float(step(*map(ops.convert_to_tensor, (images, targets)))) for _ in range(3)]
        return losses, {variable.path: ops.convert_to_numpy(variable) for variable in model.variables}

    losses, kept = learned(recomputed=False)
    assert not calls
    again, recomputed = learned(recomputed=True)
    assert calls
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    assert any("moving_mean" in path and np.abs(value).max() > 5e-3 for path, value in kept.items())
    for one, other in zip(kept.values(), recomputed.values(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
