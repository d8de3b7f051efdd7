"""What studies measure, where it is known: theory's edge, LSUV's unit variance, optima of losses, peaks."""

import contextlib
import importlib
import inspect

import numpy as np
import pytest

import layers
from recipes.engine.errors import RecipeError
from tuning import networks, studies
from tuning.propagation import propagate
from tuning.studies import (
    batch_size,
    capacity,
    initializers,
    learning_rates,
    losses,
    optimizers,
    regularization,
    schedules,
)

once = pytest.mark.once

# Arguments with which a study takes a moment.
TINY = {
    "activations": {"hidden": 1, "steps": 3},
    "batch_size": {"epochs": 1},
    "capacity": {"draws": 5},
    "initializers": {"depth": 4, "trained": 2, "steps": 3},
    "learning_rates": {"rates": (0.1, 0.2), "steps": 60},
    "losses": {"steps": 3},
    "normalization": {"steps": 2, "depth": 2},
    "optimizers": {"steps": 3, "epochs": 1, "examples": 64},
    "regularization": {"steps": 4, "width": 8},
    "schedules": {"steps": 20, "trained": 3},
}


@once
@pytest.mark.parametrize("name", studies.names())
def test_every_study_asks_and_answers_with_numbers(name):
    module = studies.load(name)
    assert studies.question(name).endswith("?") and inspect.getdoc(module).startswith(studies.question(name))
    found = module.investigate(range(2), **TINY[name])
    assert found.quantities and found.figures and "\n" not in found.conclusion
    for quantity in found.quantities:
        assert len(quantity.values) > 1 and {len(values) for values in quantity.values.values()} == {2}
        assert np.isfinite(list(quantity.values.values())).all()
    assert {trial.seed for trial in found.trials} <= {0, 1}


@once
def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="'optimiser': did you mean 'optimizers'"):
        studies.require("optimiser")


# Small networks.


def test_training_repeats_itself_by_seed_and_learns():
    training = networks.Training(networks.perceptron([16]), layers.optimizers.SGD(momentum=0.9))
    task = networks.digits(400, seed=0)
    trials = []
    for seed in (0, 1, 0):
        training.restart(seed, 0.05)
        trials.append(training.run(task, "any", seed, steps=40, batch_size=40, looks=2))
    first, other, again = trials
    assert first == again and first.curves != other.curves
    assert [step for step, _ in first.curves["val/loss"]] == [0, 20, 40]
    for trial in (first, other):
        assert trial.curves["test/accuracy"][0][1] < 0.35 < 0.7 < trial.metrics["test/accuracy"]


def test_a_restart_forgets_running_averages_and_dropped_units():
    model = networks.perceptron([8], normalization=layers.BatchNormalization, dropout=0.5)
    training = networks.Training(model, layers.optimizers.Adam(), penalty=layers.L2(1e-3))
    task, trials = networks.digits(100, seed=0), []
    for _ in range(2):
        training.restart(0, 0.01)
        trials.append(training.run(task, "any", 0, steps=4, batch_size=50, looks=2))
    assert trials[0] == trials[1]
    assert trials[0].curves["val/loss"][0] != trials[0].curves["val/loss"][2]


@once
def test_digits_are_learned_from_chosen_by_and_measured_on_apart():
    task = networks.digits(1000, seed=3)
    parts = [{row.tobytes() for row in x} for x in (task.x, task.val_x, task.test_x)]
    assert [len(x) for x in (task.x, task.val_x, task.test_x)] == [1000, 100, 197]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert not np.array_equal(task.x, networks.digits(1000, seed=4).x)


@once
def test_a_network_of_nans_is_never_right():
    outputs = np.array([[0.1, 0.9], [np.nan, np.nan], [0.8, 0.2]])
    assert networks.accuracy(np.array([1, 0, 0]), outputs) == pytest.approx(2 / 3)


# Optimizers.


@once
@pytest.mark.parametrize("name", optimizers.SURFACES)
def test_a_surfaces_minimum_is_one(name, rng):
    surface = optimizers.SURFACES[name]
    around = np.array(surface.minimum)[:, None] + rng.normal(0, 0.05, (2, 200))
    assert surface.of(*surface.minimum) == pytest.approx(0) and (surface.of(*around) > 0).all()


def test_a_trajectory_of_gradient_descent_is_the_closed_form():
    starts = np.array([[-4.0, 1.0], [2.0, 0.5]])
    paths = optimizers.trajectories(
        optimizers.SURFACES["ravine"], optimizers.OPTIMIZERS["sgd"], [0.01, 0.005], starts, steps=5
    )
    for place, rate in enumerate((0.01, 0.005)):
        factors = (1 - rate * np.array([1.0, 100.0])) ** np.arange(6)[:, None]
        np.testing.assert_allclose(paths[place], factors[:, None] * starts, rtol=1e-5, atol=1e-6)


@once
def test_what_diverges_is_the_worst_and_what_arrives_the_best():
    paths = np.array([[[np.nan, 0.0], [1e30, 0.0], [0.0, 0.0]]])
    found = optimizers.heights(optimizers.SURFACES["ravine"], paths)
    np.testing.assert_allclose(found, [[6, 6, -12]])


# Learning rates.


@once
def test_the_edge_of_stability_is_two_over_lambda_max():
    for seed in (0, 1):
        assert learning_rates.quadratic_edge(seed) == pytest.approx(1, abs=2e-3)
        assert learning_rates.network_edge(seed, steps=1000)[0] == pytest.approx(1, abs=2e-2)


@once
def test_sharpness_is_the_largest_eigenvalue(rng):
    matrix = rng.standard_normal((12, 12))
    hessian = matrix @ matrix.T
    value, vector = learning_rates.sharpness(lambda w: hessian @ w, rng.standard_normal(12), 0, 300)
    assert value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-5)
    np.testing.assert_allclose(hessian @ vector, value * vector, atol=1e-2 * value)


@once
def test_the_networks_gradient_is_its_losses_difference(rng):
    network = learning_rates.Network(0)
    direction = rng.standard_normal(network.start.shape)
    ahead, behind = (network.value_and_gradient(network.start + s * 1e-6 * direction)[0] for s in (1, -1))
    slope = network.gradient(network.start) @ direction
    assert (ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-6)


# Signals through depth.


def test_propagation_is_the_product_of_slopes(rng):
    kernels = [rng.standard_normal((6, 6)).astype("float32") for _ in range(3)]
    x = rng.standard_normal((5, 6)).astype("float32")
    found = propagate(x, kernels, "relu", seed=4)
    d = np.random.default_rng((4, 17)).standard_normal((5, 6))
    h = [x]
    for kernel in kernels:
        h.append(np.maximum(h[-1] @ kernel, 0))
    for place in (2, 1, 0):
        d = (d * (h[place + 1] > 0)) @ kernels[place].T
        assert found.gradient[place] == pytest.approx(np.sqrt(np.mean(d**2)), rel=1e-4)
        assert found.after[place] == pytest.approx(np.mean(h[place + 1] ** 2), rel=1e-4)
        assert found.flat[place] == pytest.approx(np.mean(h[place + 1] == 0))


def test_lsuv_keeps_unit_variance_where_others_lose_it():
    found = {
        start: initializers.signals(start, "relu", 0, depth=10, width=128) for start in initializers.STARTS
    }
    np.testing.assert_allclose(found["lsuv"].before, 1, atol=0.11)  # |std - 1| <= 0.05
    changed = {
        start: np.log10(found[start].before[-1] / found[start].before[0])
        for start in ("he", "xavier", "small")
    }
    # Through relu, He keeps the mean variance and Xavier halves it; chance spreads a run by 0.3.
    assert changed["he"] == pytest.approx(0, abs=1)
    assert changed["xavier"] == pytest.approx(9 * np.log10(0.5), abs=1)
    # Every layer of the small start multiplies it by 128 / 2 * SMALL^2 = 1 / 156.
    assert changed["small"] == pytest.approx(9 * np.log10(64 * initializers.SMALL**2), abs=1)
    assert found["zero"].before[-1] == found["zero"].gradient[0] == 0


# Losses.


@once
def test_each_loss_has_its_own_best_constant():
    values = np.array([0.0, 0.1, 0.3, 0.4, 10.0])
    best = {name: losses.best_constant(name, values, points=4001) for name in losses.LOSSES}
    assert best["mse"] == pytest.approx(values.mean(), abs=0.01)
    assert best["mae"] == pytest.approx(np.median(values), abs=0.01)
    # Huber's: four small residuals and one cut to 1, 4 c - 0.8 = 1.
    assert best["huber"] == pytest.approx(0.45, abs=0.01)


@once
@pytest.mark.parametrize("name", losses.LOSSES)
def test_slopes_are_those_of_the_losses(name):
    e = np.array([-2.5, -0.7, 0.4, 1.8])
    ahead, behind = (losses.per_example(name, np.zeros(4), e + step) for step in (1e-2, -1e-2))
    np.testing.assert_allclose((ahead - behind) / 2e-2, losses.residual_slope(name, e), rtol=1e-3)


@once
def test_outliers_move_squared_error_most():
    points = losses.points_on_a_line(0)
    error = {name: abs(losses.fitted_slope(name, *points) - losses.SLOPE) for name in losses.LOSSES}
    assert error["mse"] > 5 * error["huber"] and error["mse"] > 5 * error["mae"]
    assert losses.largest_stable_rate("mse", 0) < losses.largest_stable_rate("huber", 0)


@once
def test_squared_error_has_no_slope_where_it_is_surely_wrong():
    z = np.array([-8.0, -7.99])
    slope = {name: abs(np.diff(values)[0] / 0.01) for name, values in losses.sure_mistake(z).items()}
    assert slope["cross-entropy"] == pytest.approx(1, abs=1e-3) and slope["squared error"] < 1e-3


# Capacity.


@once
def test_bias_falls_and_variance_rises_with_the_degree():
    bias, variance = capacity.bias_and_variance(0, degrees=(0, 1, 3, 8), draws=100)
    assert bias[0] > bias[1] > bias[2] and bias[2] < 0.02
    assert variance[3] > 3 * variance[2]
    # A constant's variance is that of a mean of 40: (1/2 + NOISE^2) / 40.
    assert variance[0] == pytest.approx((0.5 + capacity.NOISE**2) / 40, rel=0.4)


@once
def test_the_test_error_peaks_where_features_equal_examples():
    for seed in (0, 1):
        train, test = capacity.double_descent(seed)
        peak = capacity.SHARES[int(np.argmax(test))]
        assert 0.9 <= peak <= 1.1
        assert test[-1] < test[0] < test.max()  # the second descent ends lower than the first
        beyond = np.array(capacity.SHARES) > 1
        assert (train[beyond] < 1e-10).all() and (train[np.array(capacity.SHARES) < 0.9] > 1e-4).all()


# Batch sizes, schedules, regularization.


@once
def test_gradient_noise_falls_as_one_over_the_batch_size():
    assert batch_size.exponent(batch_size.gradient_noise(0)) == pytest.approx(-1, abs=0.05)


@once
def test_a_constant_rate_ends_on_the_floor_that_theory_gives():
    rate = 0.5
    eigenvalues = np.geomspace(0.1, 1, 50)
    # Stationary variance of each coordinate: rate^2 / (1 - (1 - rate * lambda)^2).
    floor = 0.5 * np.sum(eigenvalues * rate**2 / (1 - (1 - rate * eigenvalues) ** 2))
    paths = [schedules.noisy_descent(np.full(400, rate), seed)[200:] for seed in range(4)]
    assert np.mean(paths) == pytest.approx(floor, rel=0.1)
    falling = [schedules.noisy_descent(schedules.rates("linear", rate, 400), seed)[-1] for seed in range(4)]
    assert np.mean(falling) < 0.3 * floor


@once
def test_shifted_images_are_the_same_ones_a_pixel_away(rng):
    image = np.zeros((1, 8, 8), "float32")
    image[0, 3, 4] = 1
    moved = regularization.shifted(np.repeat(image, 200, axis=0).reshape(200, 64), rng).reshape(200, 8, 8)
    places = {tuple(place) for place in np.argwhere(moved)[:, 1:]}
    assert places == {(i, j) for i in (2, 3, 4) for j in (3, 4, 5)} and (moved.sum(axis=(1, 2)) == 1).all()


@once
def test_a_third_of_the_labels_is_drawn_anew():
    task = networks.digits(1000, seed=0)
    found = regularization.mislabelled(task, seed=0)
    assert np.mean(found.y != task.y) == pytest.approx(
        0.9 * regularization.WRONG, abs=0.04
    )  # of ten, one is right
    assert found.x is task.x and found.test_y is task.test_y and found.val_y is task.val_y


@once
def test_early_stopping_takes_the_lowest_validation_loss_and_knows_no_test():
    curves = {
        "val/loss": [(0, 2.0), (5, 0.5), (10, 0.9)],
        "test/loss": [(0, 2.0), (5, 0.8), (10, 0.6)],
        "test/accuracy": [(0, 0.1), (5, 0.7), (10, 0.8)],
    }
    from tuning.evidence import Trial

    found = regularization.stopped(Trial("none", 0, curves, {"test/accuracy": 0.8}))
    assert found.setting == "early stopping" and found.metrics["test/accuracy"] == 0.7
    assert found.curves["val/loss"] == curves["val/loss"][:2]


@once
def test_a_study_compares_what_recipes_know():
    from recipes import cnn_cifar, mlp_fashion
    from tuning.study import arms

    compared = {}
    for name in studies.names():
        module = importlib.import_module(f"tuning.studies.{name}")
        for recipe in (mlp_fashion, cnn_cifar):
            with contextlib.suppress(RecipeError):
                compared[name] = arms(module, name, recipe.Config)
        assert compared[name] == module.FIELDS
