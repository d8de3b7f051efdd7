"""Adversarial networks: the penalty's slope, the yardstick, collapse, and a run that goes on."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from mlflow import MlflowClient

import layers
from recipes import gan_mnist as recipe
from recipes.engine import data as datasets
from recipes.engine import gradients, launch, probes
from recipes.engine.errors import Finished, RecipeError
from recipes.engine.progress import Progress
from tests.layers.checking import numpy_of
from tests.recipes.agreement import assert_backends_agree
from tests.recipes.recorded import Recorded

CLOCKED = ("duration_seconds",)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The tests' own cache: what they train is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "CACHE", tmp_path_factory.mktemp("cache"))
        yield recipe.CACHE


@pytest.fixture(scope="module")
def classifier(cache, digits):
    return recipe.classifier_of(digits)


@pytest.fixture(scope="module")
def real(classifier, digits):
    return recipe.seen_by(classifier, recipe.scaled(digits.test.x))


def config_of(folder, **changes):
    fields = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "checkpoint_dir": folder / "checkpoints"}
    return recipe.Config.small(**{"objective": "wgan-gp", "checkpoint_every": "20", **fields, **changes})


def trained(config):
    """A run of the recipe, with the names that a new process would give."""
    keras.utils.clear_session()
    return launch.run_recipe(config, recipe.train)


def last_run(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gan_mnist").experiment_id
    return client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)[0]


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("gan")
    metrics = trained(config_of(folder))
    return SimpleNamespace(folder=folder, metrics=metrics, run=last_run(folder))


def test_it_learns_and_leaves_everything_in_mlflow(whole, classifier, real, digits):
    untrained = recipe.build_game(config_of(whole.folder, seed=9), digits).generator
    images = recipe.generated(config_of(whole.folder), untrained, 500, 0, 10)
    before = recipe.quality(real, recipe.seen_by(classifier, images))["frechet_distance"]
    assert whole.metrics["test/frechet_distance"] < 0.6 * before
    assert whole.metrics["real/frechet_distance"] < whole.metrics["test/frechet_distance"]
    assert whole.metrics["classifier/accuracy"] > 0.85
    drawn = {path.stem for path in whole.folder.rglob("*.png")}
    assert drawn == {
        "losses", "quality", "samples", "samples_over_training", "class_shares", "nearest_neighbours",
    }  # fmt: skip
    recorded = set(whole.run.data.metrics)
    assert {"train/loss", "train/generator_loss", "train/penalty", "val/frechet_distance"} <= recorded
    assert {"dataset.fingerprint", "classifier.fingerprint", "mode_collapse"} <= set(whole.run.data.tags)


def test_a_killed_run_goes_on_with_the_same_bits(whole, tmp_path, monkeypatch):
    original, calls = Progress.after_step, []

    def stopping(self, values):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return original(self, values)

    # Pictures and stored models change nothing and take half of the time.
    monkeypatch.setattr(recipe, "draw", lambda *arguments: {})
    monkeypatch.setattr(recipe, "store", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "after_step", stopping)
        with pytest.raises(RecipeError, match="is marked KILLED"):
            trained(config_of(tmp_path))
    killed = last_run(tmp_path).info.run_id
    resumed = trained(dataclasses.replace(config_of(tmp_path), resume=killed))
    for name, value in whole.metrics.items():
        if name not in CLOCKED:
            assert resumed[name] == value, name


def small_critic():
    """Two convolutions as in the recipe, with weights from NumPy, equal on all backends."""
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 4, strides=2, padding="same", activation=layers.activations.leaky_relu),
            layers.Conv2D(4, 4, strides=2, padding="same", activation=layers.activations.silu),
            keras.layers.Flatten(),
            layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(3)
    for variable in critic.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / np.sqrt(max(1, np.prod(variable.shape[:-1]))))
    # Each channel on one side of its kink, as the penalty jumps where a unit changes sides.
    critic.layers[0].bias.assign(np.array([9.0, -9.0, 9.0]))
    return critic


def test_slope_of_the_gradient_penalty_is_that_of_finite_differences(rng):
    """The second derivative through our own layers, along a random direction of the weights."""
    critic = small_critic()
    points = ops.convert_to_tensor(rng.normal(size=(6, 8, 8, 1)).astype("float32"))
    variables = critic.trainable_variables

    def step(points):
        return gradients.by_variables(lambda: ops.mean(recipe.gradient_penalty(critic, points)), variables)

    compiled = gradients.compiled_step(step, critic.variables)
    start = [numpy_of(v).copy() for v in variables]
    direction = [rng.normal(size=w.shape).astype("float32") for w in start]
    _, slopes = compiled(points)
    along = sum(float(np.sum(numpy_of(s) * d)) for s, d in zip(slopes, direction, strict=True))
    h, values = 3e-3, []
    for sign in (1, -1):
        for variable, weight, d in zip(variables, start, direction, strict=True):
            variable.assign(weight + sign * h * d)
        values.append(float(compiled(points)[0]))
    assert abs(along) > 0.1
    assert along == pytest.approx((values[0] - values[1]) / (2 * h), rel=0.01)


def test_penalty_of_a_slope_that_is_known(rng):
    """D(u) = w.u has the slope w everywhere: 10 (5 - 1)^2; where |w| = 1, and where it is 0."""
    points = ops.convert_to_tensor(rng.normal(size=(2, 2, 2, 1)).astype("float32"))
    for length, expected in ((5.0, 160.0), (1.0, 0.0), (0.0, 10.0)):
        w = ops.convert_to_tensor(np.array([[[[3], [0]], [[4], [0]]]], "float32") * length / 5)
        penalty = recipe.gradient_penalty(lambda u, w=w: ops.sum(u * w, axis=(1, 2, 3)), points)
        np.testing.assert_allclose(numpy_of(penalty), [expected, expected], rtol=1e-4, atol=1e-4)


def test_losses_by_hand():
    """D says 2 of real images and -1 of generated ones."""
    real, fake = (ops.full((4, 2, 2, 1), value) for value in (2.0, -1.0))
    critic = lambda u: ops.mean(u, axis=(1, 2, 3))[:, None]  # noqa: E731 - slope (1/4, ...), of length 1/2
    value, parts = recipe.discriminator_loss(recipe.Config(), critic, real, fake, None)
    assert float(value) == pytest.approx(np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)), rel=1e-5)
    assert float(parts["real"]) == 2 and float(parts["fake"]) == -1
    assert float(recipe.generator_loss(recipe.Config(), critic(fake))) == pytest.approx(np.log1p(np.e))
    config = recipe.Config(objective="wgan-gp")
    value, parts = recipe.discriminator_loss(config, critic, real, fake, ops.ones((4,)) * 0.3)
    assert float(value) == pytest.approx(-1 - 2 + 10 * 0.25, rel=1e-5)
    assert float(recipe.generator_loss(config, critic(fake))) == 1


@pytest.mark.parametrize("objective", ["dcgan", "conditional"])
def test_each_player_moves_its_own_weights(objective, digits):
    config = recipe.Config.small(objective=objective, filters=4)
    game = recipe.build_game(config, digits)
    players = {"generator": game.generator, "discriminator": game.discriminator}
    before = {name: [numpy_of(v).copy() for v in p.trainable_variables] for name, p in players.items()}

    def moved(name):
        now = players[name].trainable_variables
        return [bool(np.any(numpy_of(v) != old)) for v, old in zip(now, before[name], strict=True)]

    labels = digits.train.y[:16]
    noise = np.ones((16, config.latent), "float32")
    real, labels, noise, mix = map(
        ops.convert_to_tensor, (recipe.scaled(digits.train.x[:16]), labels, noise, np.zeros(16, "float32"))
    )
    game.update_discriminator(real, labels, noise, mix)
    assert all(moved("discriminator")) and not any(moved("generator"))
    before["discriminator"] = [numpy_of(v).copy() for v in game.discriminator.trainable_variables]
    game.update_generator(labels, noise)
    assert all(moved("generator")) and not any(moved("discriminator"))
    if objective == "conditional":  # the label changes what is drawn and what is believed
        same = np.ones((2, config.latent), "float32")
        zero, one = game.generator.predict([same, np.array([0, 1], "int32")], verbose=0)
        assert np.abs(zero - one).max() > 1e-3
        logits = game.discriminator.predict([np.stack([zero, zero]), np.array([0, 1], "int32")], verbose=0)
        assert abs(logits[0, 0] - logits[1, 0]) > 1e-6


@pytest.fixture
def by_sgd(monkeypatch):
    """Adam would divide what rounding leaves of a gradient by itself."""
    monkeypatch.setattr(
        layers.optimizers, "Adam", lambda rate, *_, **named: layers.optimizers.SGD(rate, **named)
    )


def trainable(game):
    return [numpy_of(v) for p in (game.generator, game.discriminator) for v in p.trainable_variables]


@pytest.mark.parametrize("objective", ["dcgan", "wgan-gp"])
def test_half_precision_with_scaled_losses(objective, digits, by_sgd):
    """Both players move as in full precision, although every gradient was a thousand times as large."""

    def played(precision):
        keras.config.set_dtype_policy(precision)
        try:
            config = recipe.Config.small(
                objective=objective, filters=4, precision=precision, learning_rate=0.01
            )
            game, batches = recipe.build_game(config, digits), recipe.batches_of(config, digits)
            for optimizer in game.optimizers if precision == "mixed_float16" else ():
                optimizer.dynamic_scale.assign(1024.0)
            before = trainable(game)
            values = [recipe.play(config, game, *batches[step], step) for step in range(4)]
            return game, before, {name: float(value) for name, value in values[-1].items()}
        finally:
            keras.config.set_dtype_policy("float32")

    (full, start, metrics), (half, begun, others) = played("float32"), played("mixed_float16")
    assert [float(o.dynamic_scale.value) for o in half.optimizers] == [1024.0, 1024.0]  # none overflowed
    assert others == pytest.approx(metrics, rel=0.05, abs=0.02)

    def moved(now, before):
        return np.concatenate([(a - b).ravel() for a, b in zip(now, before, strict=True)])

    expected = moved(trainable(full), start)
    difference = moved(trainable(half), begun) - expected
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("objective", ["conditional", "wgan-gp"])
def test_updates_in_parts_are_those_of_the_whole_batch(objective, digits, monkeypatch, by_sgd):
    """Of both players, without batch statistics."""
    monkeypatch.setattr(layers, "BatchNormalization", lambda **named: keras.layers.Identity())

    def played(count):
        config = recipe.Config.small(
            objective=objective, accumulate=count, filters=4, learning_rate=0.1, clip_norm=3.0
        )
        game, batches = recipe.build_game(config, digits), recipe.batches_of(config, digits)
        values = [recipe.play(config, game, *batches[step], step) for step in range(3)]
        assert [int(o.iterations) for o in game.optimizers] == [3, 3 * config.updates]
        return trainable(game), {name: float(value) for name, value in values[-1].items()}

    (whole, metrics), (parts, means) = played(1), played(4)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    assert means == pytest.approx(metrics, rel=1e-5)
    start = recipe.build_game(recipe.Config.small(objective=objective, filters=4), digits)
    for player in (start.generator, start.discriminator):
        before = [numpy_of(v) for v in player.trainable_variables]
        moved = [np.abs(now - old).max() for now, old in zip(whole, before, strict=False)]
        del whole[: len(before)]
        assert np.median(moved) > 1e-3  # a thousand times what may differ


@pytest.mark.once
def test_parts_of_few_images(digits):
    """Where there are fewer images than asked for, those of an update may not be divisible."""
    few = dataclasses.replace(digits, train=datasets.Split(digits.train.x[:50], digits.train.y[:50]))
    config = recipe.Config.small(objective="wgan-gp", accumulate=2)
    with pytest.raises(RecipeError, match="--accumulate 2 does not divide the 25 images of an update"):
        recipe.batches_of(config, few)


@pytest.mark.parametrize("objective", ["conditional", "wgan-gp"])
def test_probing_shows_both_players_and_changes_nothing(objective, classifier, real, digits):
    def fitted(**flags):
        keras.utils.clear_session(free_memory=False)
        config = recipe.Config.small(
            objective=objective, filters=4, epochs=1, accumulate=2, checkpoint_every="0", **flags
        )
        game, run = recipe.build_game(config, digits), Recorded()
        recipe.fit(config, run, digits, classifier, real, game)
        arrays = [numpy_of(v) for player in (game.generator, game.discriminator) for v in player.variables]
        return arrays, (config, game, run)

    (plain, _), (probed, (config, game, run)) = fitted(), fitted(probe=6)
    for one, other in zip(plain, probed, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {f"probe_{kind}" for kind in probes.KINDS} <= set(run.pictures)
    steps = list(range(6, recipe.batches_of(config, digits).steps_per_epoch + 1, 6))
    assert len(steps) >= 2
    for player in (game.generator, game.discriminator):
        assert [step for step, _ in run.history[f"grad_norm/{player.name}/global"]] == steps
        for layer in probes.weighted(player):
            for kind in ("grad_norm", "update_ratio", "activation_std"):
                points = run.history[f"{kind}/{player.name}/{layer.name}"]
                assert [step for step, _ in points] == steps and all(value > 0 for _, value in points)


def test_probe_differentiates_the_players_own_losses(digits):
    """The critic's with its penalty; its activations are those on generated images."""
    config, run = recipe.Config.small(objective="wgan-gp", filters=4, probe=1), Recorded()
    game, batches = recipe.build_game(config, digits), recipe.batches_of(config, digits)
    probe = recipe.build_probe(config, run, game, batches)
    recipe.play(config, game, *batches[0], 0)
    probe.after_step(1)
    values = {name: value for name, ((_, value),) in run.history.items()}
    *_, (real, _, noise, mix), (_, its_noise) = recipe.moves(config, *batches[0], 0)
    players = game.generator, game.discriminator

    def step(real, noise, mix, its_noise):
        fake = game.generator(noise, training=True)
        losses = (
            lambda: -ops.mean(game.discriminator(game.generator(its_noise, training=True))),
            lambda: recipe.discriminator_loss(config, game.discriminator, real, fake, mix)[0],
        )
        slopes = [
            gradients.by_variables(loss, player.trainable_variables)[1]
            for loss, player in zip(losses, players, strict=True)
        ]
        return slopes, game.discriminator.layers[1](fake), game.discriminator.layers[1](real)

    variables = [v for player in players for v in player.variables]
    slopes, on_fake, on_real = gradients.compiled_step(step, variables)(real, noise, mix, its_noise)
    for player, own in zip(players, slopes, strict=True):
        norm = np.sqrt(sum(np.sum(numpy_of(slope) ** 2) for slope in own))
        assert values[f"grad_norm/{player.name}/global"] == pytest.approx(norm, rel=1e-4)
    seen = values[f"activation_mean/discriminator/{game.discriminator.layers[1].name}"]
    assert seen == pytest.approx(numpy_of(on_fake).mean(), rel=1e-4)
    assert seen != pytest.approx(numpy_of(on_real).mean(), rel=1e-2)


@pytest.mark.parametrize("objective", ["dcgan", "wgan-gp"])
def test_range_test_raises_both_rates(objective, digits, monkeypatch):
    games, build, run = [], recipe.build_game, Recorded()
    monkeypatch.setattr(recipe, "build_game", lambda *a: games.append(build(*a)) or games[0])
    with pytest.raises(Finished) as end:
        recipe.train(recipe.Config.small(objective=objective, find_lr=True), run)
    rates, losses = ([value for _, value in run.history[name]] for name in ("lr", "range/loss"))
    for optimizer in games[0].optimizers:  # the rate that the test ended at is not recorded
        assert float(optimizer.learning_rate) >= rates[-1] * 0.999
    assert 1e-5 < end.value.metrics["suggested/learning_rate"] < 1e-2
    assert run.pictures == ["learning_rate_range"]
    if objective == "wgan-gp":  # goes on where the critic's loss is below 0
        first = np.flatnonzero(np.array(losses) < 0)[0]
        assert first < len(losses) - 10


@pytest.mark.parametrize("objective", ["dcgan", "conditional", "wgan-gp"])
def test_backends_agree(objective, digits, meeting_place):
    arrays = losses_and_gradients(recipe.Config.small(objective=objective, filters=4), digits)
    assert_backends_agree(meeting_place, f"gan_mnist {objective}", arrays)


def losses_and_gradients(config, digits):
    """Of both players, with weights, images and noise from NumPy."""
    generator, discriminator = (
        recipe.build_generator(config, digits),
        recipe.build_discriminator(config, digits),
    )
    rng = np.random.default_rng(4)
    for variable in (*generator.trainable_variables, *discriminator.trainable_variables):
        fan_in = max(1, np.prod(variable.shape[:-1]))
        value = 1.0 if variable.name == "gamma" else 0.0
        variable.assign(value + rng.normal(size=variable.shape) / np.sqrt(fan_in))
    labels = ops.convert_to_tensor(np.arange(6, dtype="int32"))
    noise, mix = rng.normal(size=(6, config.latent)).astype("float32"), rng.random(6).astype("float32")
    real, noise, mix = map(ops.convert_to_tensor, (recipe.scaled(digits.train.x[:6]), noise, mix))

    def judged(images):
        return discriminator(recipe.given(config, images, labels), training=True)

    def step(real, noise, mix):
        drawn = lambda: generator(recipe.given(config, noise, labels), training=True)  # noqa: E731
        against = gradients.by_variables(
            lambda: recipe.discriminator_loss(config, judged, real, ops.stop_gradient(drawn()), mix)[0],
            discriminator.trainable_variables,
        )
        return against, gradients.by_variables(
            lambda: recipe.generator_loss(config, judged(drawn())), generator.trainable_variables
        )

    results = gradients.compiled_step(step, [*generator.variables, *discriminator.variables])(
        real, noise, mix
    )
    return {
        f"{player} {what}": array
        for player, (value, gradient) in zip(("discriminator", "generator"), results, strict=True)
        for what, array in (
            ("loss", numpy_of(value)),
            ("gradient", np.concatenate([np.ravel(numpy_of(g)) for g in gradient])),
        )
    }


def test_a_classifier_is_trained_once(classifier, digits, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = recipe.classifier_of(digits)
    for one, other in zip(again.get_weights(), classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_real_images_are_no_collapse(classifier, real, digits):
    others = recipe.seen_by(classifier, recipe.scaled(digits.train.x[:500]))
    found = recipe.quality(real, others)
    assert found["collapsed"] == 0 and found["coverage"] == 10
    assert 0.5 < found["diversity"] < 1.5 and found["class_distance"] < 0.1


def test_a_collapsed_generator_is_found_out(classifier, real, digits):
    """A generator that does not look at its noise makes one image."""
    config = recipe.Config.small()
    generator = recipe.build_generator(config, digits)
    dense = next(layer for layer in generator.layers if isinstance(layer, layers.Dense))
    dense.kernel.assign(np.zeros(dense.kernel.shape))
    images = recipe.generated(config, generator, 200, 0, 10)
    assert np.ptp(images, axis=0).max() < 1e-6
    found = recipe.quality(real, recipe.seen_by(classifier, images))
    assert found["collapsed"] == 1 and found["coverage"] == 1 and found["diversity"] < 1e-3


def test_either_way_of_collapsing_is_enough(classifier, real, digits):
    """Many images of seven classes; one image of each of ten."""
    few = recipe.scaled(digits.train.x[digits.train.y < 7])
    found = recipe.quality(real, recipe.seen_by(classifier, few))
    assert found["coverage"] == 7 and found["diversity"] > 0.5 and found["collapsed"] == 1
    classes = recipe.seen_by(classifier, recipe.scaled(digits.train.x)).classes
    one_each = np.array([np.flatnonzero(classes == label)[0] for label in range(10)])
    same = recipe.scaled(digits.train.x[np.tile(one_each, 20)])
    found = recipe.quality(real, recipe.seen_by(classifier, same))
    assert found["coverage"] == 10 and found["diversity"] < 1e-3 and found["collapsed"] == 1


@pytest.mark.once
def test_frechet_distance_against_closed_forms(rng):
    """Diagonal covariances: |m - n|^2 + sum (sqrt a - sqrt b)^2; any: scipy's matrix square root."""
    from scipy.linalg import sqrtm

    white = rng.normal(size=(500, 3))
    white = (white - white.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    one, other = white * [1, 2, 3] + [1, 0, 0], white * [2, 2, 1] + [0, 0, 2]
    assert recipe.frechet_distance(one, other) == pytest.approx(5 + 1 + 0 + 4)
    assert recipe.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    one, other = (rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5)) for _ in range(2))
    a, b = (np.cov(points, rowvar=False) for points in (one, other))
    mean = one.mean(axis=0) - other.mean(axis=0)
    expected = mean @ mean + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert recipe.frechet_distance(one, other) == pytest.approx(expected)


@pytest.mark.once
def test_nearest_neighbours(rng):
    others = rng.normal(size=(30, 4, 4, 1))
    chosen = [7, 0, 29]
    assert recipe.nearest_neighbours(others[chosen] + 0.01, others).tolist() == chosen


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"filters": 0}, "--filters must be at least 1, not 0"),
        ({"accumulate": 3}, "--accumulate 3 does not divide --batch-size 64"),
        ({"objective": "wgan"}, "unknown value of --objective 'wgan': did you mean 'wgan-gp'?"),
    ],
)
def test_bad_input_gets_one_sentence(changes, sentence):
    with pytest.raises(RecipeError) as error:
        recipe.Config(**changes)
    assert str(error.value).startswith(sentence) and error.value.exit_code == 2
