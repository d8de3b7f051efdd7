"""The same mathematics on every backend: each backend's test process leaves its numbers for the others."""

import os
import uuid
from pathlib import Path

import keras
import numpy as np
import pytest

from recipes.engine import gradients


def assert_backends_agree(
    folder: Path | None, name: str, arrays: dict[str, np.ndarray], tolerance: float = 1e-5
) -> None:
    """These arrays equal those of every backend that was here before; whoever comes last meets all others.

    Args:
        folder: what the fixture `meeting_place` gives; None where this backend is tested alone.
        name: what is compared.
        arrays: this backend's results.
        tolerance: the largest difference, in units of the largest entry (at least 1).
    """
    if folder is None:
        pytest.skip("other backends' processes do not run beside this one: make test")
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    written = place / f".{uuid.uuid4()}.npz"
    np.savez(written, **arrays)
    os.replace(written, place / f"{keras.backend.backend()}.npz")
    for path in place.glob("[!.]*.npz"):
        other = np.load(path)
        assert set(other.files) == set(arrays)
        for key, ours in arrays.items():
            theirs = other[key]
            assert ours.shape == theirs.shape, f"{key}: {path.stem}"
            difference = np.abs(np.asarray(ours, "float64") - theirs).max(initial=0)
            allowed = tolerance * max(1, np.abs(theirs).max(initial=0))
            assert difference <= allowed, f"{key} differs from {path.stem} by {difference:.2e}"


def set_weights_from_numpy(model: keras.Model, rng: np.random.Generator) -> keras.Model:
    """The model with the same weights on every backend; scaled by fan-in, so that nothing saturates."""
    weights = []
    for variable in model.weights:
        value = rng.normal(size=variable.shape) / np.sqrt(max(1, np.prod(variable.shape[:-1])))
        if variable.name in ("gamma", "moving_variance"):
            value = 1 + 0.1 * np.abs(value)
        weights.append(value.astype("float32"))
    model.set_weights(weights)
    return model


def outputs_loss_and_gradient(model: keras.Model, inputs, loss_of, training=True) -> dict[str, np.ndarray]:
    """A model's outputs, its loss `loss_of(outputs)` and the gradient by all weights, as NumPy arrays."""
    apply = gradients.functional(model)
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)

    def outputs(trainable, state, training=False):
        return apply(trainable, state, inputs, training=training)[0]

    def loss(trainable, state):
        return keras.ops.mean(loss_of(outputs(trainable, state, training)))

    functions = [outputs, gradients.value_and_grad(loss)]
    if keras.backend.backend() == "jax":
        functions = map(gradients.compiled, functions)  # operation by operation would compile each by itself
    variables = gradients.variables_of(model)
    given, (value, gradient) = (function(*variables) for function in functions)
    return {
        "outputs": keras.ops.convert_to_numpy(given),
        "loss": keras.ops.convert_to_numpy(value),
        "gradient": np.concatenate([np.ravel(keras.ops.convert_to_numpy(g)) for g in gradient]),
    }
