"""Weights of eight bits: `q = round(s w)` with `s = 127 / max |w|`, a scale for every column or row.

Of four bits: likewise with 7, or in groups with zero points, see `packing`. Products of floating-point
numbers of eight bits: see `float8`.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from . import float8
from .initializers import twin
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
    """Refuse the other modes.

    Among them "gptq" and "awq": Keras calibrates its own Dense and EinsumDense alone, by class.
    """
    if mode not in layer.modes:
        raise NotImplementedError(
            f"Layer {type(layer).__name__} is quantized to {' or '.join(layer.modes)} alone. "
            f"Received: mode={mode!r}"
        )


def product_of_integers(inputs: Any, integers: Any, scale: Any, quantizer: Any, dtype: str) -> Any:
    """The product of integers, `(s_x x) (s_W W)`, over both scales; its gradient is that of `x W`.

    Args:
        inputs: shape `(..., depth)`.
        integers: s_W W, of shape `(depth, width)`.
        scale: s_W, `(width,)`.
        quantizer: makes integers of the inputs, as `quantized` does; None leaves the inputs as they are.
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
        if quantizer is not None:
            inputs, input_scale = quantizer(inputs, axis=-1)
            total_scale = scale * input_scale
        return ops.cast(ops.matmul(inputs, integers), dtype) / total_scale, gradient

    return product(inputs, ops.convert_to_tensor(integers), ops.convert_to_tensor(scale))


class Quantizable:
    """Mixin for a layer one matrix of which, `matrix`, can be stored in few bits.

    A subclass sets `matrix`, `shared_axis`, the axis of the matrix that shares a scale, and `in_file`, the
    variables that it has in any mode, the matrix first; makes the matrix by `add_matrix`; gives `_int8_call`
    (and `_int4_call`, `_float8_call`, if `modes` says so); and is a `LowRankAdaptation`.
    """

    modes: tuple = ("int8",)
    # In which modes inputs are made integers, unless a config says otherwise.
    integer_inputs: tuple = ("int8",)
    matrix: str
    shared_axis: int
    in_file: tuple

    @property
    def variable_serialization_spec(self) -> dict:
        """For each mode the names of the variables in a file, in order; what a layer lacks is skipped."""
        scales = [f"{self.matrix}_scale", f"{self.matrix}_zero", "g_idx"]
        added = {None: [], "int8": scales[:1], "int4": scales, "float8": float8.NAMES}
        return {mode: [*self.in_file, *added[mode]] for mode in (None, *self.modes)}

    @property
    def inputs_quantizer(self) -> Any:
        """What makes integers of a product's inputs, `(values, axis) -> (integers, scales)`, or None."""
        if self.quantization_config is not None:
            return self.quantization_config.activation_quantizer
        return quantized if self.quantization_mode in self.integer_inputs else None

    def add_matrix(self, shape: tuple, initializer: Any = None) -> None:
        """Make the matrix, in few bits where the layer's dtype says so."""
        if self.quantization_mode:
            self.quantized_build(shape, self.quantization_mode, self.quantization_config)
        if self.quantization_mode in (None, "float8"):
            matrix = self.add_weight(
                name=self.matrix,
                shape=shape,
                initializer=twin(initializer or getattr(self, f"{self.matrix}_initializer")),
                regularizer=getattr(self, f"{self.matrix}_regularizer"),
                constraint=getattr(self, f"{self.matrix}_constraint"),
            )
            setattr(self, f"_{self.matrix}", matrix)

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
        self._is_quantized = True
        if mode == "float8":
            float8.add_scales(self)
            return
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
            mode: "int8", for some layers "int4", or "float8", which keeps the matrix and rounds in products.
            type_check: whether subclasses refuse, as they may use the matrix otherwise.
            config: a `keras.quantizers.Int8QuantizationConfig`, `Int4QuantizationConfig` or
                `Float8QuantizationConfig`.

        Raises:
            NotImplementedError: for other modes, and for subclasses.
        """
        if type_check and "matrix" not in vars(type(self)):
            raise self._not_implemented_error(self.quantize)
        check_mode(self, mode)
        matrix = getattr(self, f"_{self.matrix}")
        self.quantization_config = config
        values = ()
        if mode != "float8":
            quantizer = config and config.weight_quantizer
            values = self.stored_values(self.flat(matrix.value), mode, self.group_size(config), quantizer)
            delattr(self, f"_{self.matrix}")
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

    def saved_variables(self) -> dict:
        """What a file holds, by name."""
        names = self.variable_serialization_spec[self.quantization_mode]
        found = {name: getattr(self, f"_{name}" if name == self.matrix else name, None) for name in names}
        return {name: variable for name, variable in found.items() if variable is not None}

    def saved_values(self) -> dict:
        """Their values, with the change of low rank merged in, if there is one."""
        variables = self.saved_variables()
        if not self.lora_enabled:
            return variables
        if self.quantization_mode in (None, "float8"):
            return variables | {self.matrix: getattr(self, self.matrix)}
        matrix = self.dequantized() + self.flat(self.change())
        values = self.stored_values(matrix, self.quantization_mode, self.group_size(self.quantization_config))
        names = (self.matrix, f"{self.matrix}_scale", f"{self.matrix}_zero")
        return variables | {
            name: ops.reshape(value, variables[name].shape)
            for name, value in zip(names, values, strict=False)
        }

    def load_own_variables(self, store: dict) -> None:
        """Read the variables; in few bits where the file's are."""
        self.quantize_as(store)
        super().load_own_variables(store)

    def quantize_as(self, store: dict) -> None:
        """Be quantized if the matrix in a file is: inside a layer that tells nothing of it, none was made so.

        The file shows a group's size, but not whether inputs are quantized: they are in int8, not in int4.
        """
        if not self.built or self.quantization_mode is not None or "0" not in store:
            return
        if keras.backend.standardize_dtype(store["0"].dtype) != "int8":
            return
        place = len([name for name in self.in_file if getattr(self, name) is not None])
        if store["0"].shape == self.matrix_shape and store[str(place)].ndim != 2:
            self.quantize("int8", type_check=False)
            return
        size = None
        if store[str(place)].ndim == 2:  # scales of groups; then follow zeros and every place's group
            size = int((np.asarray(store[str(place + 2)]) == 0).sum())
        config = keras.quantizers.Int4QuantizationConfig(block_size=size)
        self.quantize("int4", type_check=False, config=config)

    def quantization_description(self) -> dict:
        """The constructor's argument."""
        return {"quantization_config": keras.saving.serialize_keras_object(self.quantization_config)}

    @classmethod
    def from_config(cls, config: dict) -> Any:
        """The layer described by `get_config`."""
        described = keras.saving.deserialize_keras_object(config.get("quantization_config"))
        return super().from_config({**config, "quantization_config": described})


class QuantizableParts:
    """Mixin for layers with `Quantizable` sublayers: their build config says how each of them is quantized.

    Keras saves no config of sublayers: without this they come back as they were made.
    """

    def quantizable_parts(self) -> list:
        """All such layers inside, however deep."""
        return [layer for layer in self._flatten_layers(include_self=False) if isinstance(layer, Quantizable)]

    def get_build_config(self) -> dict | None:
        """The shapes of the inputs, and of every part that is quantized, how."""
        config = super().get_build_config()
        parts = [
            layer.quantization_mode and {"mode": layer.quantization_mode, **layer.quantization_description()}
            for layer in self.quantizable_parts()
        ]
        return {**config, "parts": parts} if any(parts) else config

    def build_from_config(self, config: dict) -> None:
        """Build for these shapes, and quantize the parts."""
        super().build_from_config(config)
        for layer, described in zip(self.quantizable_parts(), config.get("parts", ()), strict=False):
            if described and layer.quantization_mode is None:
                how = keras.saving.deserialize_keras_object(described["quantization_config"])
                layer.quantize(described["mode"], type_check=False, config=how)
