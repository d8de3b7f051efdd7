"""The fully connected layer, and the low-rank adaptation of a kernel that convolutions share."""

from typing import Any

import keras
from keras import ops

from . import float8
from .initializers import twin
from .products import matmul
from .quantization import Quantizable, product_of_integers


class LowRankAdaptation:
    """Mixin for layers whose `matrix` can be fine-tuned by a product of two thin matrices (LoRA).

        matrix = W + alpha / rank A B,    A: (..., inputs, rank), B: (rank, outputs), W frozen

    Layers call `set_adaptation` in their constructor, make `_kernel`, or what `matrix` says, and `bias` in
    `build` and end it with `adapt_if_asked`.

    Reference:
        Hu et al., 2021, LoRA: low-rank adaptation of large language models, arXiv:2106.09685.
    """

    matrix = "kernel"

    def set_adaptation(self, lora_rank: int | None, lora_alpha: float | None) -> None:
        """Keep rank and scale; a rank of None leaves the matrix as it is."""
        self.lora_rank = lora_rank
        self.lora_alpha = lora_rank if lora_alpha is None else lora_alpha
        self.lora_enabled = False

    def adapt_if_asked(self) -> None:
        """Last step of `build`."""
        if self.lora_rank:
            self.built = True
            self.enable_lora(self.lora_rank, self.lora_alpha)

    def adapted_matrix(self) -> Any:
        """The matrix with its adaptation, where there is one."""
        if not self.built:
            raise AttributeError(f"You must build the layer before accessing `{self.matrix}`.")
        matrix = getattr(self, f"_{self.matrix}")
        return ops.cast(matrix + self.change(), self.compute_dtype) if self.lora_enabled else matrix

    @property
    def kernel(self) -> Any:
        """The kernel with its adaptation, where there is one."""
        return self.adapted_matrix()

    @property
    def matrix_shape(self) -> tuple:
        """The matrix' shape, however it is stored."""
        return getattr(self, f"_{self.matrix}").shape

    def factors(self) -> list:
        """A and B."""
        return [getattr(self, f"lora_{self.matrix}_{part}") for part in "ab"]

    def change(self) -> Any:
        """The low-rank change of the matrix."""
        return self.lora_alpha / self.lora_rank * ops.matmul(*self.factors())

    def changed(self, inputs: Any) -> Any:
        """What the change adds to the product with these inputs `(..., inputs)`."""
        a, b = self.factors()
        return self.lora_alpha / self.lora_rank * ops.matmul(ops.matmul(inputs, a), b)

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Freeze the matrix and train a change of low rank to it; once, after the layer is built.

        Args:
            rank: number of columns of A and rows of B.
            lora_alpha: scale of the change; None takes `rank`.
            a_initializer, b_initializer: how A and B start; B from zeros leaves the layer unchanged.

        Raises:
            ValueError: if the layer is not built, is adapted already, or has a constraint on the matrix.
        """
        if getattr(self, f"{self.matrix}_constraint"):
            raise ValueError(
                f"Lora is incompatible with {self.matrix.removesuffix('s')} constraints. In order to enable "
                f"lora on this layer, remove the `{self.matrix}_constraint` argument."
            )
        if not self.built:
            raise ValueError("Cannot enable lora on a layer that isn't yet built.")
        if self.lora_enabled:
            raise ValueError("lora is already enabled. This can only be done once per layer.")
        # Keras locks the state of a built layer; its own layers open it in the same way.
        self._tracker.unlock()
        shape = self.matrix_shape
        for part, factor_shape, initializer in (
            ("a", (*shape[:-1], rank), a_initializer),
            ("b", (rank, shape[-1]), b_initializer),
        ):
            factor = self.add_weight(
                name=f"lora_{self.matrix}_{part}",
                shape=factor_shape,
                initializer=twin(initializer),
                # The change is small: half precision would lose it.
                dtype="float32",
                regularizer=getattr(self, f"{self.matrix}_regularizer"),
            )
            setattr(self, f"lora_{self.matrix}_{part}", factor)
        getattr(self, f"_{self.matrix}").trainable = False
        self._tracker.lock()
        self.lora_enabled = True
        self.lora_rank = rank
        self.lora_alpha = rank if lora_alpha is None else lora_alpha

    def saved_variables(self) -> dict:
        """What a file holds, by name."""
        return {"kernel": self._kernel} | ({} if self.bias is None else {"bias": self.bias})

    def saved_values(self) -> dict:
        """Their values, with the adaptation merged in."""
        return self.saved_variables() | {"kernel": self.kernel}

    def save_own_variables(self, store: dict) -> None:
        """Write the matrix, with its adaptation merged in, and what else there is."""
        if self.built:
            for index, value in enumerate(self.saved_values().values()):
                store[str(index)] = value

    def load_own_variables(self, store: dict) -> None:
        """Read what `save_own_variables` wrote; an adaptation starts from no change again."""
        if not self.lora_enabled:
            self._check_load_own_variables(store)
        if not self.built:
            return
        for index, variable in enumerate(self.saved_variables().values()):
            variable.assign(store[str(index)])
        if self.lora_enabled:
            for factor in self.factors():
                factor.assign(ops.zeros(factor.shape))

    def adaptation_config(self) -> dict:
        """The constructor's arguments of the adaptation, where there is one."""
        return {"lora_rank": self.lora_rank, "lora_alpha": self.lora_alpha} if self.lora_rank else {}


@keras.saving.register_keras_serializable(package="layers")
class Dense(Quantizable, LowRankAdaptation, keras.Layer):
    """Fully connected layer.

        y = activation(x W + b),    W: (inputs, units), b: (units,)

    Leading axes are kept: the same matrix is applied at every position. Masks pass through.

    Args:
        units: number of outputs, a positive integer.
        activation: name, function or None.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer: how W and b start.
        kernel_regularizer, bias_regularizer: penalties on W and b.
        activity_regularizer: penalty on the output.
        kernel_constraint, bias_constraint: projections of W and b after each optimizer step.
        lora_rank, lora_alpha: rank and scale of a low-rank change that is trained instead of W.
        quantization_config: how a layer whose dtype is quantized, say "int8_from_float32", does it; None is
            as `quantize("int8")` does.

    Call arguments:
        inputs: tensor of shape (batch, ..., inputs).

    Returns:
        Tensor of shape (batch, ..., units).

    Raises:
        ValueError: if `units` is not a positive integer.
    """

    modes = ("int8", "int4", "float8")
    matrix = "kernel"
    shared_axis = 0
    in_file = ("kernel", "bias")

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(units, int) or units <= 0:
            raise ValueError(
                f"Received an invalid value for `units`, expected a positive integer. Received: units={units}"
            )
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.set_adaptation(lora_rank, lora_alpha)
        self.quantization_config = quantization_config
        self.input_spec = keras.InputSpec(min_ndim=2)
        self.supports_masking = True

    @property
    def kernel(self) -> Any:
        """The kernel with its adaptation; of four bits, one integer a byte."""
        return self.integers() if self.built and self.quantization_mode == "int4" else super().kernel

    @property
    def matrix_shape(self) -> tuple:
        """`(inputs, units)`."""
        return (self._kernel.shape[0], self.units)

    def build(self, input_shape: tuple) -> None:
        """Make W and b for inputs of this shape."""
        self.add_matrix((input_shape[-1], self.units))
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.input_spec = keras.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})
        self.adapt_if_asked()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the layer."""
        return self.finish(matmul(inputs, self.kernel), self.bias)  # (batch, ..., units)

    def finish(self, outputs: Any, bias: Any) -> Any:
        """Bias and activation."""
        if bias is not None:
            outputs = ops.add(outputs, bias)
        return outputs if self.activation is None else self.activation(outputs)

    def _int8_call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product of integers."""
        outputs = product_of_integers(
            inputs, self.integers(), self.kernel_scale, self.inputs_quantizer, self.compute_dtype
        )
        return self.adapted(outputs, inputs)

    def _float8_call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product of factors rounded to eight bits."""
        return self.finish(float8.product(self, inputs, self._kernel, training), float8.bias_of(self))

    def _int4_call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product with what the integers stand for, or, with an activation quantizer, of integers."""
        if self.inputs_quantizer:
            return self._int8_call(inputs)
        return self.adapted(ops.matmul(inputs, self.dequantized()), inputs)

    def adapted(self, outputs: Any, inputs: Any) -> Any:
        """The change of low rank, bias and activation."""
        if self.lora_enabled:
            outputs = ops.cast(outputs + self.changed(inputs), self.compute_dtype)
        return self.finish(outputs, self.bias)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape with `units` as last axis."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        config = super().get_config() | {
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }
        return config | self.adaptation_config() | self.quantization_description()
