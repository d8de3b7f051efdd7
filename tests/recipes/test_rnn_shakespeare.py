"""Character models by recurrent layers: the carried state, the gradients through time, the tracked run."""

import os
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from keras import ops

import layers
from recipes import numpy_rnn
from recipes import rnn_shakespeare as recipe
from recipes.engine import launch, models, training
from recipes.engine.data import text as texts
from recipes.engine.errors import RecipeError
from recipes.engine.progress import Progress
from tests.recipes import agreement
from tests.recipes.recorded import Recorded

CHARACTERS = 11


def tiny(**fields):
    return recipe.Config.small(**{"units": 6, "length": 5, **fields})


@pytest.fixture
def short(monkeypatch):
    """The built-in text, its beginning only: enough to learn from, quick to read."""
    load = texts.load
    monkeypatch.setattr(texts, "load", lambda name, folder=None: load(name, folder, 24_000))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run on the beginning of the built-in text: (metrics, folder)."""
    folder = tmp_path_factory.mktemp("rnn")
    load, before = texts.load, Path.cwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(texts, "load", lambda name, path=None: load(name, path, 24_000))
            keras.utils.set_random_seed(0)
            return launch.run_recipe(recipe.Config.small(**LEARNS), recipe.train), folder
    finally:
        os.chdir(before)


LEARNS = {
    "batch_size": 16,
    "length": 16,
    "epochs": 3,
    "cell": "gru",
    "units": 40,
    "checkpoint_every": "60",
    "written": 10,
}


def test_it_learns_and_leaves_everything_in_mlflow(learned):
    """Clearly better than the frequencies of characters are."""
    metrics, folder = learned
    assert metrics["test/loss"] < metrics["baseline/characters"] - 0.3
    assert metrics["test/bits_per_character"] == pytest.approx(metrics["test/loss"] / np.log(2))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rnn_shakespeare").experiment_id])
    assert run.info.status == "FINISHED"
    assert {"train/loss", "val/loss", "lr", "characters_per_second"} <= set(run.data.metrics)
    figures = {Path(f.path).stem for f in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {"learning_curves", "gradient_norms", "hidden_units"}
    (samples,) = folder.rglob("samples.txt")
    assert samples.read_text().count("=====\n\n") == 6


def test_the_stored_model_gives_the_reported_loss(learned):
    metrics, folder = learned
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rnn_shakespeare").experiment_id])
    model = models.load(f"runs:/{run.info.run_id}/model", f"sqlite:///{folder}/mlruns/mlflow.db")
    text = texts.load("python_docs", characters=24_000)
    assert recipe.measured(model, text.test) == pytest.approx(metrics["test/loss"], rel=1e-5)


def test_a_killed_run_goes_on_with_its_state(learned, tmp_path, monkeypatch, short):
    """Stopped between two checkpoints and resumed: the same numbers, so the carried state came along too."""
    metrics, _ = learned
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(Killed):
        after = Progress.after_step

        def killed(self, values):
            after(self, values)
            if self.step == 100:
                raise Killed

        patch.setattr(Progress, "after_step", killed)
        launch.run_recipe(recipe.Config.small(**LEARNS), recipe.train)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rnn_shakespeare").experiment_id])
    client.update_run(run.info.run_id, status="KILLED")
    keras.utils.clear_session()
    again = launch.run_recipe(recipe.Config.small(**LEARNS, resume=run.info.run_id), recipe.train)
    assert again["val/loss"] == metrics["val/loss"] and again["test/loss"] == metrics["test/loss"]


@pytest.mark.parametrize("cell", recipe.CELLS)
def test_the_state_is_carried_from_batch_to_batch(cell, rng):
    """Two halves read one after the other by a stateful network: what the whole gives to a stateless one."""
    config = tiny(cell=cell, layers=2)
    stateful = recipe.build_model(config, CHARACTERS, 3, 4, stateful=True)
    reader = recipe.build_model(config, CHARACTERS)
    agreement.set_weights_from_numpy(reader, rng)
    stateful.set_weights(reader.get_weights())
    numbers = rng.integers(0, CHARACTERS, (3, 8)).astype("int32")
    halves = [ops.convert_to_numpy(stateful(numbers[:, part])) for part in (slice(0, 4), slice(4, 8))]
    whole = ops.convert_to_numpy(reader(numbers))
    np.testing.assert_allclose(np.concatenate(halves, axis=1), whole, atol=1e-5)
    assert np.abs(ops.convert_to_numpy(reader(numbers[:, 4:])) - whole[:, 4:]).max() > 1e-3
    # Writing goes on the same way, one character at a time.
    read = recipe.remembering(config, reader, 3)
    written = np.stack([read(numbers[:, [place]]) for place in range(8)], axis=1)
    np.testing.assert_allclose(written, whole, atol=1e-5)


def steps_in_parts(parts, cell):
    """Ten optimizer steps, each in so many parts: the trained model, and the state of every row."""
    config = tiny(
        cell=cell, layers=2, batch_size=6, length=5, epochs=2, accumulate=parts, checkpoint_every="0"
    )
    numbers = np.random.default_rng(2).integers(0, CHARACTERS, 181).astype("int32")
    batches = texts.Streams(numbers, config.length, config.batch_size, 0, parts)
    model = recipe.build_model(
        config, CHARACTERS, batches.batch_size, config.length, stateful=True, parts=parts
    )
    agreement.set_weights_from_numpy(model, np.random.default_rng(3))
    optimizer = layers.optimizers.SGD(0.5, **training.optimizer_options(config))
    model.compile(optimizer, recipe.cross_entropy)
    training.fit(model, batches, dict, config, Recorded(), lambda step: 0.5 + 0 * step)
    assert int(optimizer.iterations) == 10
    states = [state for layer in model.layers for state in getattr(layer, "states", None) or []]
    if parts > 1:
        states = [ops.concatenate(pair) for pair in model.line]
    return model, [ops.convert_to_numpy(state) for state in states]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_parts_of_a_batch_go_on_from_their_own_states(cell):
    """Gradients through carried states, averaged over three parts: the weights and states of whole steps."""
    (whole, states), (parts, in_turns) = (steps_in_parts(count, cell) for count in (1, 3))
    for one, other in zip(states, in_turns, strict=True):
        assert one.shape == (6, 6)
        np.testing.assert_allclose(other, one, atol=1e-6)
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6 * max(1, np.abs(one).max()))
    assert type(whole) is not recipe.InTurns  # a network that reads whole batches has nothing to pay for


@pytest.mark.parametrize(("cell", "name"), [("rnn", "rnn"), ("lstm", "lstm"), ("gru", "gru")])
def test_gradients_through_time_equal_those_by_hand(cell, name, rng):
    """Against backpropagation written out in NumPy, in another recipe."""
    config = tiny(cell=cell)
    model = recipe.build_model(config, CHARACTERS)
    agreement.set_weights_from_numpy(model, rng)
    embedding, kernel, recurrent, bias, readout, offset = model.get_weights()
    weights = [embedding @ kernel, recurrent, bias, readout, offset]  # characters as unit vectors
    numbers = rng.integers(0, CHARACTERS, 16 * 13).astype("int32")
    ours = recipe.gradient_norms(model, numbers, steps=12)
    by_hand = numpy_rnn.gradient_norms(
        numpy_rnn.CELLS[name], weights, numbers, numpy_rnn.Config.small(hidden=config.units), steps=12
    )
    np.testing.assert_allclose(ours, by_hand, rtol=2e-4)


def test_gradients_through_time_of_cells_that_compute_in_half_precision(rng):
    """They reach as far as in full precision, to about one part in a hundred."""
    numbers = rng.integers(0, CHARACTERS, 400)
    full = recipe.build_model(tiny(), CHARACTERS)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = recipe.build_model(tiny(), CHARACTERS)
        half.set_weights(full.get_weights())
        norms = recipe.gradient_norms(half, numbers, steps=12)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(norms, recipe.gradient_norms(full, numbers, steps=12), rtol=0.05)


@pytest.mark.parametrize("cell", recipe.CELLS)
def test_backends_agree(cell, rng, meeting_place):
    """Same weights, same characters: logits, loss and gradient."""
    model = recipe.build_model(tiny(cell=cell, layers=2), CHARACTERS)
    agreement.set_weights_from_numpy(model, rng)
    x, y = (rng.integers(0, CHARACTERS, (3, 7)).astype("int32") for _ in range(2))
    results = agreement.outputs_loss_and_gradient(model, x, lambda logits: recipe.cross_entropy(y, logits))
    agreement.assert_backends_agree(meeting_place, f"rnn_shakespeare {cell}", results)


@pytest.mark.once
@pytest.mark.parametrize("cell", recipe.CELLS)
def test_cells_are_compared_at_equal_numbers_of_weights(cell):
    config = recipe.Config(cell=cell, parameters=100_000, layers=2)
    units = recipe.units_of(config, 65)
    counts = [recipe.weights_of(config, units + more, 65) for more in (-1, 0, 1)]
    assert abs(counts[1] - 100_000) <= min(abs(counts[0] - 100_000), abs(counts[2] - 100_000))
    assert recipe.build_model(config, 65).count_params() == counts[1]
    assert recipe.units_of(recipe.Config(cell=cell), 65) == 256


@pytest.mark.once
def test_places_in_line_word_and_paragraph():
    counts = recipe.places("ab c\nd\n\ne.f")
    assert counts["line"].tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 0, 1, 2]
    assert counts["word"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert counts["paragraph"].tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.once
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"bidirectional": True},
            "--bidirectional is refused: a layer that also reads from the end sees the very",
        ),
        ({"layers": 0}, "--layers, --units and --length must be positive"),
        ({"dropout": 1.0}, r"--dropout lie in \[0, 1\)"),
        ({"cell": "ltsm"}, "unknown value of --cell 'ltsm': did you mean 'lstm'"),
    ],
)
def test_bad_input_gets_one_sentence(fields, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe.Config(**fields)
