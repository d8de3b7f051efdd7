"""One model's logits, loss and gradients on one backend, written to a file: run once a backend and compared.

KERAS_BACKEND=torch python tests/recipes/agreement.py MODEL FILE.npz
"""

import sys

import keras
import numpy as np

from recipes import cnn_cifar
from recipes.engine import gradients
from recipes.engine.data import Dataset, Split


def main(name: str, path: str) -> None:
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 8).astype("int32")
    )
    config = cnn_cifar.Config(model=name, activation="silu", backend=keras.backend.backend())
    model = cnn_cifar.build_model(config, Dataset("random", split, split, split, tuple("0123456789")))
    # Weights from NumPy, as the backends draw differently; scaled by fan-in, so that nothing saturates.
    weights = []
    for variable in model.weights:
        value = rng.normal(size=variable.shape) / np.sqrt(max(1, np.prod(variable.shape[:-1])))
        if variable.name in ("gamma", "moving_variance"):
            value = 1 + 0.1 * np.abs(value)
        weights.append(value.astype("float32"))
    model.set_weights(weights)

    loss_of = cnn_cifar.smoothed_cross_entropy(config, 10)
    apply = gradients.functional(model)
    labels = keras.ops.convert_to_tensor(split.y)

    def loss(trainable, state):
        logits, _ = apply(trainable, state, keras.ops.convert_to_tensor(split.x), training=True)
        return keras.ops.mean(loss_of(labels, logits))

    value, gradient = gradients.value_and_grad(loss)(*gradients.variables_of(model))
    flat = np.concatenate([np.ravel(keras.ops.convert_to_numpy(g)) for g in gradient])
    np.savez(
        path, logits=model.predict(split.x, verbose=0), loss=keras.ops.convert_to_numpy(value), gradient=flat
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
