"""A model's loss and gradients in a few numbers, for tests that every backend gives the same ones."""

import numpy as np
from keras import ops

from recipes.engine import gradients


def with_numpy_weights(model, scale=0.5):
    """The model with weights from NumPy: the backends' own random numbers differ."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=v.shape).astype("float32") * scale for v in model.weights])
    return model


def loss_and_slopes(model, inputs, loss_of):
    """The loss, and for each weight the product of its gradient with a fixed direction.

    Args:
        model: without random layers.
        inputs: what it is called on.
        loss_of: from its outputs to a scalar.
    """
    apply = gradients.functional(model)

    def loss(trainable, state):
        outputs, _ = apply(trainable, state, inputs, training=True)
        return loss_of(outputs)

    value, slopes = gradients.value_and_grad(loss)(*gradients.variables_of(model))
    flat = [np.ravel(ops.convert_to_numpy(slope)).astype("float64") for slope in slopes]
    return [float(value), *(float(slope @ np.cos(np.arange(slope.size))) for slope in flat)]
