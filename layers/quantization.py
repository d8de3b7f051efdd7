"""Weights of eight bits: `q = round(s w)` with `s = 127 / max |w|`, a scale for every column or row.

Of four bits: likewise with 7, or in groups with zero points, see `packing`.
"""

import math
from typing import Any

import keras
from keras import ops

from .packing import of_groups, packed, quantized_by_groups, unpacked

RANGES = {"int8": (-127, 127), "int4": (-8, 7)}


def quantized(
    values: Any, axis: int, quantizer: Any = None, value_range: tuple = RANGES["int8"]
) -> tuple[Any, Any]:
    """Integers of a range, and the scales by which the values were multiplied.

    Args:
        values: a tensor of floating-point numbers.
        axis: the axis that shares a scale; it stays with length 1 in the scales.
        quantizer: does it otherwise, if given: `quantizer(values, axis=axis) -> (integers, scales)`.
        value_range: the least and the largest integer.
    """
    if quantizer is not None:
        return quantizer(values, axis=axis)
    values = ops.convert_to_tensor(values)
    scales = value_range[1] / (ops.max(ops.abs(values), axis=axis, keepdims=True) + keras.config.epsilon())
    return ops.cast(ops.clip(ops.round(values * scales), *value_range), "int8"), scales


def check_mode(layer: Any, mode: str) -> None:
    """Refuse the other modes."""
    if mode not in layer.modes:
        raise NotImplementedError(
            f"Layer {type(layer).__name__} is quantized to {' or '.join(layer.modes)} alone. "
            f"Received: mode={mode!r}"
        )


def product_of_integers(inputs: Any, integers: Any, scale: Any, config: Any, dtype: str) -> Any:
    """The product of integers, `(s_x x) (s_W W)`, over both scales; its gradient is that of `x W`.

    Args:
        inputs: shape `(..., depth)`.
        integers: s_W W, of shape `(depth, width)`.
        scale: s_W, `(width,)`.
        config: a `keras.quantizers.Int8QuantizationConfig`, or None; one without activation quantizer leaves
            the inputs as they are.
        dtype: of the outputs.

    Returns:
        Tensor `(..., width)`.
    """

    @ops.custom_gradient
    def product(inputs: Any, integers: Any, scale: Any) -> tuple:
        def gradient(*arguments: Any, upstream: Any = None) -> tuple:
            if upstream is None:
                (upstream,) = arguments
            return ops.matmul(upstream, ops.transpose(ops.cast(integers, dtype) / scale)), None, None

        total_scale = scale
        if config is None or config.activation_quantizer:
            inputs, input_scale = quantized(inputs, -1, config and config.activation_quantizer)
            total_scale = scale * input_scale
        return ops.cast(ops.matmul(inputs, integers), dtype) / total_scale, gradient

    return product(inputs, ops.convert_to_tensor(integers), ops.convert_to_tensor(scale))


class Quantizable:
    """Mixin for a layer one matrix of which, `matrix`, can be stored in few bits.

    A subclass sets `matrix` and `shared_axis`, the axis of the matrix that shares a scale; builds by
    `quantized_build` where `quantization_mode` says so; and gives `_int8_call` (and `_int4_call`, if
    `modes` says so), and for the file `change`, the matrix' change of low rank.
    """

    modes: tuple = ("int8",)
    matrix: str
    shared_axis: int

    def flat(self, matrix: Any) -> Any:
        """The matrix with two axes, where a layer's has more."""
        return matrix

    def scale_shape(self, shape: tuple, mode: str) -> tuple:
        """The shape of the scales of a matrix of this shape, as in the file."""
        return (shape[1 - self.shared_axis],)

    def group_size(self, config: Any) -> int | None:
        """How many weights share a scale in int4; None for a whole column or row."""
        size = getattr(config or self.dtype_policy, "block_size", None)
        return None if size == -1 else size

    def quantized_build(self, shape: tuple, mode: str, config: Any = None) -> None:
        """Make the matrix of integers and its scales; of groups, also zeros and each place's group."""
        check_mode(self, mode)
        self.matrix_width = shape[-1]
        stored_shape = (*shape[:-1], (shape[-1] + 1) // 2) if mode == "int4" else shape
        self.add_fixed(f"_{self.matrix}", stored_shape, "int8")
        size = self.group_size(config)
        if size is None:
            self.add_fixed(f"{self.matrix}_scale", self.scale_shape(shape, mode))
        else:
            scale_shape = list(shape)
            scale_shape[self.shared_axis] = math.ceil(shape[self.shared_axis] / size)
            self.add_fixed(f"{self.matrix}_scale", scale_shape)
            self.add_fixed(f"{self.matrix}_zero", scale_shape, "int8")
            self.add_fixed("g_idx", (shape[self.shared_axis],))
            self.g_idx.assign(ops.floor(ops.arange(shape[self.shared_axis], dtype="float32") / size))
        self._is_quantized = True

    def add_fixed(self, name: str, shape: tuple, dtype: str | None = None) -> None:
        """Make a weight that is not trained: integers from 0 on, scales from 1."""
        initializer = "ones" if name.endswith("scale") else "zeros"
        weight = self.add_weight(
            name=name.lstrip("_"), shape=shape, initializer=initializer, dtype=dtype, trainable=False
        )
        setattr(self, name, weight)

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """Store the matrix in few bits from now on; it is not trained any more.

        Args:
            mode: "int8", or for some layers "int4".
            type_check: whether subclasses refuse, as they may use the matrix otherwise.
            config: a `keras.quantizers.Int8QuantizationConfig` or `Int4QuantizationConfig`.

        Raises:
            NotImplementedError: for other modes, and for subclasses.
        """
        if type_check and "matrix" not in vars(type(self)):
            raise self._not_implemented_error(self.quantize)
        check_mode(self, mode)
        matrix = getattr(self, f"_{self.matrix}")
        quantizer = config and config.weight_quantizer
        values = self.stored_values(self.flat(matrix.value), mode, self.group_size(config), quantizer)
        delattr(self, f"_{self.matrix}")
        self.quantization_config = config
        self.quantized_build(matrix.shape, mode, config)
        for variable, value in zip(self.quantization_variables(), values, strict=False):
            variable.assign(ops.reshape(value, variable.shape))
        if self.quantization_mode is None:
            policy = f"int4/{self.group_size(config) or -1}" if mode == "int4" else mode
            self.dtype_policy = f"{policy}_from_{self.dtype_policy.name}"

    def stored_values(self, matrix: Any, mode: str, size: int | None, quantizer: Any = None) -> tuple:
        """Integers as stored, scales, and of groups zeros, for a matrix of floating-point numbers."""
        if size is None:
            integers, *rest = quantized(matrix, self.shared_axis, quantizer, RANGES[mode])
        else:
            integers, *rest = quantized_by_groups(matrix, self.shared_axis, size)
        return packed(integers) if mode == "int4" else integers, *rest

    def quantization_variables(self) -> list:
        """The matrix of integers, and all that says what they mean, as in the file."""
        names = (f"_{self.matrix}", f"{self.matrix}_scale", f"{self.matrix}_zero", "g_idx")
        return [getattr(self, name) for name in names if hasattr(self, name)]

    def integers(self) -> Any:
        """The matrix of integers, one in a byte."""
        matrix = getattr(self, f"_{self.matrix}")
        return unpacked(matrix, self.matrix_width) if self.quantization_mode == "int4" else matrix

    def dequantized(self) -> Any:
        """The matrix in floating-point numbers."""
        integers, (_, scale, *groups) = self.flat(self.integers()), self.quantization_variables()
        if groups:
            return of_groups(integers, scale, *groups, self.shared_axis, self.compute_dtype)
        scale = ops.expand_dims(ops.reshape(scale, (-1,)), self.shared_axis)
        return ops.cast(integers, self.compute_dtype) / scale

    def quantized_values(self) -> list:
        """Those variables' values for a file, with the change of low rank merged in, if there is one."""
        variables = self.quantization_variables()
        if not self.lora_enabled:
            return variables
        size = self.group_size(self.quantization_config)
        matrix = self.dequantized() + self.flat(self.change())
        merged = self.stored_values(matrix, self.quantization_mode, size)
        return [
            *(ops.reshape(value, variable.shape) for value, variable in zip(merged, variables, strict=False)),
            *variables[len(merged) :],
        ]

    def quantize_as(self, stored: Any) -> None:
        """Be quantized if the matrix in a file is: a layer inside another is made without knowing it.

        Args:
            stored: the matrix in the file.
        """
        is_int8 = keras.backend.standardize_dtype(stored.dtype) == "int8"
        if (
            self.quantization_mode is None
            and is_int8
            and stored.shape == getattr(self, f"_{self.matrix}").shape
        ):
            self.quantize("int8", type_check=False)

    def quantization_description(self) -> dict:
        """The constructor's argument."""
        return {"quantization_config": keras.saving.serialize_keras_object(self.quantization_config)}

    @classmethod
    def from_config(cls, config: dict) -> Any:
        """The layer described by `get_config`."""
        described = keras.saving.deserialize_keras_object(config.get("quantization_config"))
        return super().from_config({**config, "quantization_config": described})
