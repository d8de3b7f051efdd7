"""Products in numbers of eight bits with an exponent: forward in e4m3, the gradient of the outputs in e5m2.

    y = Q(x) Q(W),    Q(v) = s round(v / s),    s = max |v| of the last steps / largest number of the format

Weights stay as they are; what is rounded are the factors of the products. Scales and maxima are variables
whose "gradient" is their next value, which Keras' optimizers write over them (`overwrite_with_gradient`).

Reference:
    Micikevicius et al., 2022, FP8 formats for deep learning, arXiv:2209.05433.
"""

from typing import Any

import keras
from keras import ops

# The largest numbers of the formats.
LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
PARTS = ("inputs", "kernel", "outputs_grad")
NAMES = [f"{part}_{what}" for part in PARTS for what in ("scale", "amax_history")]


def add_scales(layer: Any) -> None:
    """Make a scale and a history of maxima for each of the three, in Keras' order."""
    default = keras.dtype_policies.QuantizedFloat8DTypePolicy.default_amax_history_length
    length = getattr(layer.dtype_policy, "amax_history_length", default)
    for name in NAMES:
        is_scale = name.endswith("scale")
        weight = layer.add_weight(
            name=name,
            shape=() if is_scale else (length,),
            initializer="ones" if is_scale else "zeros",
            dtype="float32",
            autocast=False,
            overwrite_with_gradient=True,
        )
        setattr(layer, name, weight)


def rounded(values: Any, scale: Any, number_format: str, dtype: str) -> Any:
    """The values as the format holds them: `scale * cast(values / scale)`, cut off at its largest number."""
    scale, largest = ops.cast(scale, dtype), LARGEST[number_format]
    return ops.cast(ops.cast(ops.clip(values / scale, -largest, largest), number_format), dtype) * scale


def following(values: Any, scale: Any, history: Any, number_format: str) -> tuple[Any, Any]:
    """The next scale, from the maxima so far, and the history with that of these values in first place."""
    most = ops.max(history)
    usable = ops.logical_and(most > 0, ops.isfinite(most))
    newest = ops.reshape(ops.cast(ops.max(ops.abs(values)), history.dtype), (1,))
    history = ops.concatenate([newest, ops.roll(history, -1)[1:]])
    return ops.where(usable, most / LARGEST[number_format], scale), history


def product(layer: Any, inputs: Any, kernel: Any, training: bool | None) -> Any:
    """`inputs kernel` in float8, with the scales of the layer.

    Args:
        layer: on which `add_scales` was called.
        inputs: `(..., depth)`.
        kernel: `(depth, width)`.
        training: whether the forward scales move on.

    Returns:
        Tensor `(..., width)` of the layer's dtype.

    Raises:
        NotImplementedError: if the layer's kernel is changed by a product of low rank.
    """
    if layer.lora_enabled:
        raise NotImplementedError("Products in float8 take no change of low rank (lora), as in Keras.")
    dtype = layer.compute_dtype

    @ops.custom_gradient
    def forward(values: Any, scale: Any, history: Any) -> tuple:
        state = following(values, scale, history, "float8_e4m3fn") if training else (None, None)

        def gradient(*arguments: Any, upstream: Any = None) -> tuple:
            return (arguments[0] if upstream is None else upstream, *state)

        return rounded(values, scale, "float8_e4m3fn", dtype), gradient

    @ops.custom_gradient
    def backward(outputs: Any, scale: Any, history: Any) -> tuple:
        def gradient(*arguments: Any, upstream: Any = None) -> tuple:
            upstream = arguments[0] if upstream is None else upstream
            state = following(upstream, scale, history, "float8_e5m2")
            return rounded(upstream, scale, "float8_e5m2", dtype), *state

        return outputs, gradient

    # Copies: of a variable TensorFlow would want a second gradient.
    of_inputs, of_kernel, of_gradient = (
        [ops.copy(getattr(layer, f"{part}_{what}")) for what in ("scale", "amax_history")] for part in PARTS
    )
    outputs = ops.matmul(forward(inputs, *of_inputs), forward(ops.copy(kernel), *of_kernel))
    return backward(outputs, *of_gradient)


def bias_of(layer: Any) -> Any:
    """The bias, as bfloat16 holds it where all is float32, as in Keras: compilers then fuse its addition."""
    if layer.bias is None or layer.compute_dtype != "float32":
        return layer.bias
    return ops.cast(ops.cast(layer.bias, "bfloat16"), "float32")
