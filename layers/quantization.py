"""Weights of eight bits: `q = round(s w)` with `s = 127 / max |w|`, a scale for every column or row."""

from typing import Any

import keras
from keras import ops


def quantized(values: Any, axis: int | tuple, quantizer: Any = None) -> tuple[Any, Any]:
    """Integers from -127 to 127, and the scales by which the values were multiplied.

    Args:
        values: a tensor of floating-point numbers.
        axis: the axis or axes that share a scale; they stay with length 1 in the scales.
        quantizer: does it otherwise, if given: `quantizer(values, axis=axis) -> (integers, scales)`.
    """
    if quantizer is not None:
        return quantizer(values, axis=axis)
    values = ops.convert_to_tensor(values)
    scales = 127 / (ops.max(ops.abs(values), axis=axis, keepdims=True) + keras.config.epsilon())
    return ops.cast(ops.clip(ops.round(values * scales), -127, 127), "int8"), scales


def check_mode(layer: Any, mode: str) -> None:
    """Refuse the other modes."""
    if mode != "int8":
        raise NotImplementedError(
            f"Layer {type(layer).__name__} is quantized to 'int8' alone. Received: mode={mode!r}"
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
    """Mixin for a layer one matrix of which, `matrix`, can be stored in eight bits.

    A subclass sets `matrix` and `shared_axis`, the axis or axes of the matrix that share a scale; builds by
    `quantized_build` where `quantization_mode` says so; and gives `_int8_call`, and for the file `change`,
    the matrix' change of low rank.
    """

    matrix: str
    shared_axis: int | tuple

    def scale_shape(self, shape: tuple) -> tuple:
        """The scales' shape for a matrix of this shape, as in the file."""
        return (shape[1 - self.shared_axis],)

    def quantized_build(self, shape: tuple, mode: str, config: Any = None) -> None:
        """Make the matrix of integers and its scales."""
        check_mode(self, mode)
        matrix = self.add_weight(
            name=self.matrix, shape=shape, initializer="zeros", dtype="int8", trainable=False
        )
        setattr(self, f"_{self.matrix}", matrix)
        scale = self.add_weight(
            name=f"{self.matrix}_scale",
            shape=self.scale_shape(shape),
            initializer="ones",
            trainable=False,
        )
        setattr(self, f"{self.matrix}_scale", scale)
        self._is_quantized = True

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """Store the matrix in eight bits from now on; it is not trained any more.

        Args:
            mode: "int8".
            type_check: whether subclasses refuse, as they may use the matrix otherwise.
            config: a `keras.quantizers.Int8QuantizationConfig`.

        Raises:
            NotImplementedError: for other modes, and for subclasses.
        """
        if type_check and "matrix" not in vars(type(self)):
            raise self._not_implemented_error(self.quantize)
        check_mode(self, mode)
        matrix = getattr(self, f"_{self.matrix}")
        integers, scales = quantized(matrix.value, self.shared_axis, config and config.weight_quantizer)
        delattr(self, f"_{self.matrix}")
        self.quantization_config = config
        self.quantized_build(matrix.shape, mode, config)
        getattr(self, f"_{self.matrix}").assign(integers)
        scale = getattr(self, f"{self.matrix}_scale")
        scale.assign(ops.reshape(scales, scale.shape))
        if self.quantization_mode is None:
            self.dtype_policy = f"{mode}_from_{self.dtype_policy.name}"

    def dequantized(self) -> Any:
        """The matrix in floating-point numbers."""
        integers = getattr(self, f"_{self.matrix}")
        shared = [self.shared_axis] if isinstance(self.shared_axis, int) else self.shared_axis
        broadcast = [1 if axis in shared else size for axis, size in enumerate(integers.shape)]
        scales = ops.reshape(getattr(self, f"{self.matrix}_scale"), broadcast)
        return ops.cast(integers, self.compute_dtype) / scales

    def quantized_values(self) -> tuple[Any, Any]:
        """Integers and scales for a file, with the change of low rank merged in, if there is one."""
        scale = getattr(self, f"{self.matrix}_scale")
        if not self.lora_enabled:
            return getattr(self, f"_{self.matrix}"), scale
        integers, scales = quantized(self.dequantized() + self.change(), self.shared_axis)
        return integers, ops.reshape(scales, scale.shape)

    def quantize_as(self, stored: Any) -> None:
        """Be quantized if the matrix in a file is: a layer inside another is made without knowing it.

        Args:
            stored: the matrix in the file.
        """
        if self.quantization_mode is None and keras.backend.standardize_dtype(stored.dtype) == "int8":
            self.quantize("int8", type_check=False)

    def quantization_description(self) -> dict:
        """The constructor's argument."""
        return {"quantization_config": keras.saving.serialize_keras_object(self.quantization_config)}

    @classmethod
    def from_config(cls, config: dict) -> Any:
        """The layer described by `get_config`."""
        described = keras.saving.deserialize_keras_object(config.get("quantization_config"))
        return super().from_config({**config, "quantization_config": described})
