"""What every layer is: a function with weights, which are made when the first input shows their shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from layers.autograd import ops
from layers.autograd.nn import initializers
from layers.autograd.tensor import Tensor, as_tensor

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": ops.relu,
    "tanh": ops.tanh,
    "sigmoid": ops.sigmoid,
    "gelu": ops.gelu,
    "softplus": ops.softplus,
    "softmax": ops.softmax,
}


class Parameter(Tensor):
    """A tensor that belongs to a layer.

    Args:
        data: the initial values.
        name: what it is in the layer, e.g. "kernel".
        trainable: False for values kept by the layer itself, such as the moving mean of batch normalization.
    """

    __slots__ = ("trainable",)

    def __init__(self, data: Any, name: str, trainable: bool = True) -> None:
        super().__init__(data, requires_grad=trainable, name=name)
        self.trainable = trainable

    def assign(self, values: Any) -> None:
        """Replace the values, keeping type and shape."""
        values = np.asarray(values)
        if values.shape != self.shape:
            raise ValueError(
                f"{self.name}: cannot assign values of shape {values.shape} to shape {self.shape}"
            )
        self.data = values.astype(self.dtype)


class Module:
    """The base of all layers.

    A layer makes its weights in `build`, with `add_weight`, and computes in `call`. Weights and sublayers are
    found in the order in which they became attributes, which is therefore the order of `weights`.

    Args:
        rng: the random generator of initial weights and dropout, or a seed; layers of one model share one.
        dtype: type of the weights.
    """

    def __init__(self, rng: np.random.Generator | int | None = None, dtype: str = "float32") -> None:
        self.rng = np.random.default_rng(rng)
        self.dtype = dtype
        self.built = False

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Build on the first call, then compute."""
        x = as_tensor(x)
        if not self.built:
            self.build(x.shape)
            self.built = True
        return self.call(x, *args, **kwargs)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make the weights; nothing to do for a layer without any."""

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The computation of the layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define call")

    def add_weight(
        self, name: str, shape: Sequence[int], initializer: Any, trainable: bool = True
    ) -> Parameter:
        """A new weight filled by an initializer (a name or a function of shape and generator)."""
        values = initializers.get(initializer)(tuple(shape), self.rng)
        return Parameter(values.astype(self.dtype), name, trainable)

    @property
    def weights(self) -> list[Parameter]:
        """All weights, of this layer and of those inside, in the order of Keras."""
        return [weight for _, weight in self.named_weights()]

    @property
    def trainable_weights(self) -> list[Parameter]:
        """The weights an optimizer may change."""
        return [weight for weight in self.weights if weight.trainable]

    def named_weights(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Pairs (path, weight), as in `0/kernel`."""
        for attribute, value in vars(self).items():
            several = isinstance(value, (list, tuple))
            for number, found in enumerate(_found(value, (Module, Parameter))):
                if isinstance(found, Parameter):
                    yield f"{prefix}{found.name}", found
                else:
                    yield from found.named_weights(f"{prefix}{number if several else attribute}/")

    def get_weights(self) -> list[np.ndarray]:
        """Copies of the values of all weights."""
        return [weight.data.copy() for weight in self.weights]

    def set_weights(self, values: Sequence[Any]) -> None:
        """Replace the values of all weights, e.g. by those of the Keras layer of the same name."""
        if len(values) != len(self.weights):
            raise ValueError(
                f"{type(self).__name__}: {len(values)} arrays for {len(self.weights)} weights"
                + ("" if self.built else "; call the layer once, so that they exist")
            )
        for weight, value in zip(self.weights, values, strict=True):
            weight.assign(value)

    def zero_grad(self) -> None:
        """Forget the gradients that backward passes have added up."""
        for weight in self.weights:
            weight.grad = None


class Sequential(Module):
    """Layers one after the other.

    Args:
        layers: the layers, first to last.
    """

    def __init__(self, layers: Sequence[Module]) -> None:
        super().__init__()
        self.layers = list(layers)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """Every layer applied to the result of the one before."""
        for layer in self.layers:
            x = layer(x, training=training)
        return x


def activation(name: Any) -> Any:
    """The function of an activation given by name, None for linear, or the function itself."""
    if name is None:
        return ACTIVATIONS["linear"]
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; there are {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def _found(value: Any, kind: Any) -> list[Any]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, kind)]
