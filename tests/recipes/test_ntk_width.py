"""The tangent kernel against finite differences, its limit against integrals, networks against kernels."""

import keras
import numpy as np
import pytest
from keras import ops

from recipes import ntk_width as recipe
from recipes.engine import data, gradients
from recipes.engine.errors import Finished, RecipeError
from recipes.engine.launch import run_recipe
from tests.recipes.recorded import Recorded


def network(width, depth, inputs, rng):
    """(function, weights) of a network of ours, and the weights as arrays."""
    model = recipe.build_model(width, depth, inputs)
    weights = recipe.draw(model, rng)
    return recipe.function_of(model), weights, [ops.convert_to_numpy(w) for w in weights]


def outputs_by_hand(weights, x):
    """The network in NumPy: weights are kernel, bias, kernel, bias, ..."""
    pairs = [(weights[i], weights[i + 1]) for i in range(0, len(weights), 2)]
    for i, (kernel, bias) in enumerate(pairs):
        x = (2**0.5 if i else 1) / np.sqrt(len(kernel)) * x @ kernel + 0.1 * bias
        x = np.maximum(x, 0) if i < len(pairs) - 1 else x
    return x[:, 0]


def on_the_sphere(rng, n, inputs):
    x = rng.normal(size=(n, inputs))
    return (np.sqrt(inputs) * x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")


def test_contraction_equals_finite_differences_of_every_weight(rng):
    function, weights, arrays = network(5, 2, 3, rng)
    x = on_the_sphere(rng, 4, 3)
    flat = np.concatenate([a.ravel() for a in arrays]).astype("float64")
    ends = np.cumsum([a.size for a in arrays])

    def outputs(flat):
        parts = np.split(flat, ends[:-1])
        return outputs_by_hand([p.reshape(a.shape) for p, a in zip(parts, arrays, strict=True)], x)

    np.testing.assert_allclose(
        ops.convert_to_numpy(function(weights, ops.convert_to_tensor(x))), outputs(flat), rtol=1e-5, atol=1e-6
    )
    h = 1e-6
    jacobian = np.stack(
        [(outputs(flat + h * e) - outputs(flat - h * e)) / (2 * h) for e in np.eye(len(flat))], 1
    )
    # Three examples a block: the second block is filled up.
    kernel = recipe.empirical_kernel(function, 3)(weights, x, x)
    np.testing.assert_allclose(kernel, jacobian @ jacobian.T, rtol=1e-4, atol=1e-5)


def test_contraction_in_blocks_equals_the_explicit_product_and_is_symmetric_and_positive(rng):
    function, weights, _ = network(16, 2, 4, rng)
    x, z = on_the_sphere(rng, 7, 4), on_the_sphere(rng, 5, 4)
    rows = [
        np.concatenate([ops.convert_to_numpy(leaf).reshape(len(points), -1) for leaf in leaves], axis=1)
        for points in (x, z)
        for leaves in [gradients.jacobian(function)(weights, ops.convert_to_tensor(points))]
    ]
    kernel = recipe.empirical_kernel(function, 3)
    np.testing.assert_allclose(kernel(weights, x, z), rows[0] @ rows[1].T, rtol=1e-4, atol=1e-5)
    square = kernel(weights, x, x)
    np.testing.assert_allclose(square, square.T, rtol=1e-5, atol=1e-6)
    assert np.linalg.eigvalsh(square.astype("float64")).min() > -1e-5 * np.trace(square)


@pytest.mark.once
def test_the_limit_by_hand():
    """Inputs of length sqrt(2), biases 0.1: the same point, and the opposite one."""
    x = np.sqrt(2) * np.array([[1.0, 0.0], [-1.0, 0.0]])
    # S_1 = 1.01; S_2 = 1.01 + 0.01; T_2 = S_2 + S_1.
    assert recipe.limit_kernel(x[:1], x[:1], 1)[0, 0] == pytest.approx(1.02 + 1.01)
    assert recipe.limit_kernel(x[:1], x[:1], 2)[0, 0] == pytest.approx(1.03 + 1.02 + 1.01)
    angle = np.arccos(-0.99 / 1.01)
    second = 1.01 * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi + 0.01
    assert recipe.limit_kernel(x[:1], x[1:], 1)[0, 0] == pytest.approx(
        second - 0.99 * (np.pi - angle) / np.pi
    )


@pytest.mark.once
def test_the_integrals_of_the_limit_by_sampling(rng):
    """2 E[relu(u) relu(v)] and 2 E[relu'(u) relu'(v)] from a million draws."""
    x = on_the_sphere(rng, 2, 5)
    covariance = x.astype("float64") @ x.T / 5 + 0.01
    u, v = rng.multivariate_normal([0, 0], covariance, 1_000_000).T
    second = 2 * np.mean(np.maximum(u, 0) * np.maximum(v, 0)) + 0.01
    tangent = second + covariance[0, 1] * 2 * np.mean((u > 0) & (v > 0))
    assert recipe.limit_kernel(x[:1], x[1:], 1)[0, 0] == pytest.approx(tangent, abs=0.01)


def test_a_wide_network_comes_near_the_limit(rng):
    """1/sqrt(width) falls from 0.25 to 0.016: the mean of three networks must come to within 4 %."""
    x = on_the_sphere(rng, 8, 4)
    limit = recipe.limit_kernel(x, x, 1)
    errors = []
    for width in (16, 4096):
        model = recipe.build_model(width, 1, 4)
        kernel = recipe.empirical_kernel(recipe.function_of(model), 8)
        found = [recipe.distance(kernel(recipe.draw(model, rng), x, x), limit) for _ in range(3)]
        errors.append(np.mean(found))
    assert errors[1] < 0.04 < 0.12 < errors[0]


@pytest.mark.once
def test_kernel_regression_solves_the_gradient_flow(rng):
    """Against small steps of df/dt = K(., X) (y - f(X)) / n; at time 0 nothing, in the end interpolation."""
    rows = rng.normal(size=(6, 9))
    kernel, start, targets = rows @ rows[:4].T, rng.normal(size=6), rng.normal(size=4)
    np.testing.assert_allclose(recipe.kernel_regression(kernel, start, targets, 0.0), start)
    np.testing.assert_allclose(recipe.kernel_regression(kernel, start, targets)[:4], targets, atol=1e-9)
    f = start.copy()
    for _ in range(20_000):
        f += 1e-4 * kernel @ (targets - f[:4]) / 4
    np.testing.assert_allclose(recipe.kernel_regression(kernel, start, targets, 2.0), f, atol=2e-3)


@pytest.mark.once
def test_tasks_are_of_one_length_and_tell_classes_apart():
    task = recipe.two_classes(recipe.Config(examples=20), data.load("digits"))
    assert task.x.shape == (20, 64) and set(task.y) == set(task.y_test) == {-1, 1}
    for x in (task.everywhere, recipe.wave().everywhere):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.sqrt(x.shape[1]), rtol=1e-5)
    perfect = np.concatenate([task.y, task.y_test])
    assert recipe.accuracy(task, perfect) == 1 and recipe.accuracy(task, -perfect) == 0


@pytest.mark.once
def test_slope_is_the_exponent():
    widths = [10, 20, 80]
    assert recipe.slope(widths, 3 * np.array(widths)[:, None] ** -0.5 * np.ones(2)) == pytest.approx(-0.5)


def test_a_run_finds_wider_networks_nearer_to_their_kernels(tmp_path):
    """From width 16 to 128 the guide 1/sqrt(width) falls by a factor of 2.8."""
    metrics = run_recipe(recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"), recipe.train)
    for name in ("wave", "images"):
        assert metrics[f"initial/{name}/widest"] < 0.6 * metrics[f"initial/{name}/narrowest"]
        assert metrics[f"change/{name}/widest"] < 0.6 * metrics[f"change/{name}/narrowest"]
        assert metrics[f"gap/{name}/widest"] < 0.6 * metrics[f"gap/{name}/narrowest"]
        assert metrics[f"train_rmse/{name}/widest"] < 0.1
    assert metrics["accuracy/images/widest"] > 0.7
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"by_width", "tangent", "wave", "images", "matrices"}
    assert keras.config.dtype_policy().name == "float32"


def test_the_range_test_finds_what_the_kernel_says():
    """Below 2 / (largest eigenvalue of K / n) descent lowers the loss at every step; it ends above."""
    config = recipe.Config.small(find_lr=True, widths="16,256")
    run = Recorded()
    with pytest.raises(Finished) as end:
        recipe.train(config, run)
    task = recipe.two_classes(config, data.load("digits"))
    limit = recipe.limit_kernel(task.x, task.x, config.depth)
    stable = 4 * recipe.step_size(config, limit, len(task.x))
    rates, losses = (np.array([value for _, value in run.history[name]]) for name in ("lr", "range/loss"))
    falls = losses[1:] < losses[:-1]
    assert falls[(rates[:-1] > 1e-4) & (rates[:-1] < stable / 2)].all()
    assert rates[-1] > stable and losses[-1] > losses.min()
    assert end.value.metrics["suggested/learning_rate"] < stable
    assert run.pictures == ["learning_rate_range"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"widths": "8"}, "--widths takes two or more numbers in growing order, not '8'"),
        ({"widths": "16,8"}, "--widths takes two or more numbers in growing order"),
        ({"widths": "8,x"}, "--widths takes whole numbers, as in 32,128,512, not '8,x'"),
        ({"depth": 0}, "--depth, --seeds and --examples must be at least 1"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        recipe.Config(**changes)
    assert error.value.exit_code == 2
