"""A neural-network library in NumPy: tensors with gradients, layers, optimizers, and the derivations by hand.

    tensor.py      the tensor, the recorded graph, backward and grad
    ops/           the differentiable operations
    nn/            layers, initializers and losses, with the arguments and weight order of Keras
    by_hand/       the same layers without any graph: forward, and backward derived on paper
    optim.py       optimizers and clipping;  schedules.py  learning rates over time
    check.py       gradients against finite differences
    draw.py        the graph as a picture
    scalar.py      the same idea for single numbers, in a page

It needs nothing but NumPy (and matplotlib for pictures), and serves the Keras layers of this project as a
second, independent oracle.
"""

from layers.autograd import by_hand, nn, ops, optim, scalar, schedules
from layers.autograd.check import check_gradients, numeric_gradient
from layers.autograd.draw import draw
from layers.autograd.tensor import Tensor, grad, no_grad

__all__ = [
    "Tensor",
    "by_hand",
    "check_gradients",
    "draw",
    "grad",
    "nn",
    "no_grad",
    "numeric_gradient",
    "ops",
    "optim",
    "scalar",
    "schedules",
]
