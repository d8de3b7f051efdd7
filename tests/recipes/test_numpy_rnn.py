"""Recurrent networks by hand: the gradients against recorded ones, and the tracked run."""

import numpy as np
import pytest

from layers.autograd import Tensor, grad, nn
from layers.autograd.nn.losses import sparse_categorical_crossentropy
from recipes import numpy_rnn as recipe
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe

pytestmark = pytest.mark.once

LAYERS = {"rnn": nn.SimpleRNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("name", LAYERS)
def test_backpropagation_through_time_equals_recorded_gradients(name, rng):
    cell, config = recipe.CELLS[name], recipe.Config.small(hidden=4)
    weights = [rng.normal(0, 0.4, w.shape) for w in recipe.build_model(config, cell, 5)]
    x, y = rng.integers(0, 5, (3, 6)), rng.integers(0, 5, (3, 6))
    states = [rng.normal(size=(3, 4)) for _ in range(cell.states)]
    loss, gradients, after = recipe.backpropagate(cell, weights, x, y, states)

    layer = LAYERS[name](4, return_sequences=True, return_state=True, dtype="float64")
    layer(np.eye(5)[x])
    layer.set_weights(weights[:3])
    readout = [Tensor(w, requires_grad=True) for w in weights[3:]]
    h, *last = layer(np.eye(5)[x], initial_state=states)
    recorded = sparse_categorical_crossentropy(y, h @ readout[0] + readout[1], from_logits=True).mean()
    assert loss == pytest.approx(recorded.item(), rel=1e-12)
    for mine, other in zip(after, last, strict=True):
        np.testing.assert_allclose(mine, other.data, rtol=1e-12)
    for mine, other in zip(gradients, grad(recorded, [*layer.weights, *readout]), strict=True):
        np.testing.assert_allclose(mine, other.data, rtol=1e-10, atol=1e-13)


def test_gradient_of_a_linear_memory_is_the_power_of_its_weight():
    # An RNN with U = 0.5 I near zero, where tanh is the identity: each step back halves the gradient.
    config = recipe.Config.small(hidden=3)
    weights = recipe.build_model(config, recipe.CELLS["rnn"], 4)
    weights[0][:] = 0
    weights[1][:] = 0.5 * np.eye(3)
    norms = recipe.gradient_norms(recipe.CELLS["rnn"], weights, np.arange(16 * 6) % 4, config, steps=5)
    np.testing.assert_allclose(norms, 0.5 ** np.arange(5), rtol=1e-5)


def test_gradient_of_the_lstm_memory_is_the_forget_gate():
    # All weights 0, forget gate f and output gate o by bias: through c alone the gradient falls by f a step.
    config = recipe.Config.small(hidden=2)
    weights = recipe.build_model(config, recipe.CELLS["lstm"], 4)
    for weight in weights[:3]:
        weight[:] = 0
    weights[2][2:4] = np.log(0.9 / 0.1)  # sigmoid = 0.9
    norms = recipe.gradient_norms(recipe.CELLS["lstm"], weights, np.arange(16 * 7) % 4, config, steps=6)
    np.testing.assert_allclose(norms[2:] / norms[1:-1], 0.9, rtol=1e-5)


def test_stretches_continue_row_by_row():
    numbers = np.arange(21)
    text = recipe.Stretches(numbers, 2, 5)
    assert text.steps_per_epoch == 2
    pieces = [text[0], text[1]]
    np.testing.assert_array_equal(pieces[0][0], [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])
    np.testing.assert_array_equal(pieces[1][0], [[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]])
    for x, y in pieces:
        np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(text[2][0], text[0][0])  # the next epoch


def test_a_run_learns_and_draws(tmp_path):
    config = recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = run_recipe(config, recipe.train)
    for name in LAYERS:
        assert metrics[f"{name}/val_loss"] < metrics["baseline/characters"] - 0.1
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"learning_curves", "gradient_norms"}
    (samples,) = tmp_path.rglob("samples.txt")
    assert "===== gru =====" in samples.read_text()


def test_a_text_too_short_is_refused():
    with pytest.raises(RecipeError, match="--characters at least 1320"):
        recipe.Config(characters=1000)
