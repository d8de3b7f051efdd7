"""Loss landscapes: directions, slices and planes against what they must be, and the tracked run."""

import keras
import numpy as np
import pytest

import layers
from recipes import loss_landscape as recipe
from recipes.engine import data, gradients
from recipes.engine.data import Split
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe

# The losses of `test_every_backend_sees_the_same_surface` as JAX gave them, in float32.
SURFACE = [[5.244886, 3.792948, 3.447342], [4.697940, 3.331765, 2.997247], [5.035705, 3.628065, 3.029994]]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def model(digits):
    return recipe.build_model(recipe.Config.small(), digits)


@pytest.mark.once
def test_every_filter_of_a_direction_is_as_long_as_the_networks(rng):
    kernel = np.array([[3.0, 0.0], [4.0, 2.0]])  # two filters, of lengths 5 and 2
    convolution = rng.normal(size=(3, 3, 4, 6))
    one, bias, other = recipe.filter_normalized([kernel, np.ones(2), convolution], rng)
    np.testing.assert_allclose(np.linalg.norm(one, axis=0), [5, 2])
    np.testing.assert_array_equal(bias, [0, 0])
    for j in range(6):
        assert np.linalg.norm(other[..., j]) == pytest.approx(np.linalg.norm(convolution[..., j]))
    # A random direction: nearly orthogonal to the weights in many dimensions, and a new one each time.
    cosine = np.sum(other * convolution) / np.sum(convolution**2)
    assert abs(cosine) < 0.3
    assert np.abs(recipe.filter_normalized([kernel], rng)[0] - one).max() > 0.1


def test_normalizations_and_biases_stay_where_they_are(model, rng):
    direction = recipe.filter_normalized(recipe_weights(model), rng)
    for variable, part in zip(model.trainable_variables, direction, strict=True):
        assert np.any(part) == (variable.name == "kernel"), variable.path


def recipe_weights(model):
    row = recipe.flattened(gradients.variables_of(model)[0])
    return recipe.unflattened(row, recipe.shapes_of(model))


def test_a_row_holds_all_weights(model):
    # Convolutions, scales and offsets, the last layer; running statistics are no weights.
    assert len(recipe_weights(model)) == 7 + 2 * 7 + 2
    for own, variable in zip(recipe_weights(model), model.trainable_variables, strict=True):
        np.testing.assert_array_equal(own, keras.ops.convert_to_numpy(variable.value))


def test_running_statistics_follow_the_weights(model):
    """The default, 0.99, is too slow for runs of some hundred steps."""
    chains = [getattr(layer, "branch", [layer]) for layer in model.layers]
    norms = [layer for chain in chains for layer in chain if isinstance(layer, layers.BatchNormalization)]
    assert [norm.momentum for norm in norms] == 7 * [0.9]


def test_the_middle_of_a_slice_is_the_models_own_loss(model, digits):
    """300 images: a whole batch and one that is filled up."""
    trainable, state = gradients.variables_of(model)
    row = recipe.flattened(trainable)
    loss, error = recipe.measure_on(recipe.compiled_sums(model), state, digits.test, 300)(row[None])[0]
    logits = model.predict(digits.test.x[:300], verbose=0).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert loss == pytest.approx(-log_p[np.arange(300), digits.test.y[:300]].mean(), rel=1e-5)
    assert error == pytest.approx(np.mean(logits.argmax(axis=1) != digits.test.y[:300]))


def test_scaling_the_layers_does_not_change_the_slice(rng):
    """10 times the first kernel and a tenth of the second are the same network, and as sharp."""
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu", use_bias=False), layers.Dense(3, use_bias=False)]
    )
    split = Split(rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20).astype("int32"))
    measure = recipe.measure_on(recipe.compiled_sums(network), [], split, 20)
    ticks = np.linspace(-1, 1, 5)[:, None]

    def slice_of(weights):
        direction = recipe.filter_normalized(weights, np.random.default_rng(3))
        return measure(recipe.flattened(weights) + ticks * recipe.flattened(direction))

    first, second = recipe_weights(network)
    np.testing.assert_allclose(slice_of([10 * first, 0.1 * second]), slice_of([first, second]), rtol=1e-4)
    assert np.ptp(slice_of([first, second])[:, 0]) > 0.01


@pytest.mark.once
def test_the_plane_gives_a_known_path_back(rng):
    """A path in a plane of 50 dimensions: the plane is found, and the path in it, up to a rotation."""
    axes = np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    known = np.stack([np.linspace(3, 0, 9), np.sin(np.linspace(0, 3, 9))], axis=1)
    known -= known[-1]
    final = rng.normal(size=50)
    plane, path, explained = recipe.principal_plane(final + known @ axes, final)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(final + path @ plane, final + known @ axes, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), np.linalg.norm(known, axis=1), atol=1e-12)
    assert explained[0] > explained[1] > 0 and explained[:2].sum() == pytest.approx(1)
    assert np.all(path[0] >= 0) and np.allclose(path[-1], 0)


@pytest.mark.once
def test_the_path_is_that_of_the_kernels_alone():
    shapes = [(2, 2), (2,)]
    row, final = np.arange(6.0), -np.arange(6.0)
    np.testing.assert_array_equal(recipe.kernels_alone(row, shapes, final), [0, 1, 2, 3, -4, -5])


@pytest.mark.once
def test_sharpness_of_a_parabola():
    """L = 1 + c a^2 rises by c / 4 at |a| = 1/2: for c = 4 and 8 by 1.5 in the mean."""
    ticks = np.linspace(-1, 1, 9)
    assert recipe.sharpness(ticks, 1 + np.outer([4, 8], ticks**2)) == pytest.approx(1.5)


@pytest.mark.once
def test_a_grid_has_rows_of_y_and_columns_of_x():
    measured = recipe.grid(
        lambda points: points[:, :2],
        np.array([1.0, 2, 0]),
        np.eye(3)[:2],
        np.array([0, 10, 20]),
        np.array([5, 6]),
    )
    assert measured.shape == (2, 3, 2)
    np.testing.assert_array_equal(measured[1, 2], [1 + 20, 2 + 6])


@pytest.mark.parametrize("shortcut", ["residual", "none"])
def test_depth_counts_layers_with_weights(shortcut, digits):
    network = recipe.build_model(recipe.Config(depth=14, shortcut=shortcut), digits)
    assert sum(v.name == "kernel" for v in network.trainable_variables) == 14


def test_a_run_learns_and_draws(tmp_path):
    metrics = run_recipe(recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"), recipe.train)
    assert metrics["test/accuracy"] > 0.6  # guessing gives 0.1
    assert metrics["sharpness/train"] > 0 and metrics["sharpness/train_error"] > 0
    assert metrics["explained/first"] > metrics["explained/second"] > 0
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"learning_curves", "slices", "surface", "trajectory"}


def test_every_backend_sees_the_same_surface(model, digits, rng):
    """Weights from NumPy, scaled by fan-in."""
    trainable = [
        (1 + 0.1 * np.abs(w) if v.name == "gamma" else w / np.sqrt(max(1, np.prod(w.shape[:-1])))).astype(
            "float32"
        )
        for v in model.trainable_variables
        for w in [rng.normal(size=v.shape)]
    ]
    measure = recipe.measure_on(
        recipe.compiled_sums(model), gradients.variables_of(model)[1], digits.train, 100
    )
    plane = np.stack([recipe.flattened(recipe.filter_normalized(trainable, rng)) for _ in range(2)])
    ticks = np.linspace(-0.5, 0.5, 3)
    surface = recipe.grid(measure, recipe.flattened(trainable), plane, ticks, ticks)
    np.testing.assert_allclose(surface[..., 0], SURFACE, rtol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth": 18}, r"--depth must be 8, 14, 20, ... \(6 n \+ 2\), not 18"),
        ({"points": 10}, "--points must be odd"),
        ({"directions": 0}, "--filters, --directions and --examples must be at least 1"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        recipe.Config(**changes)
    assert error.value.exit_code == 2
