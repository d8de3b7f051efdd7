"""From tokens and images to vectors: the embedding table, and the patches of a vision transformer."""

import warnings
from typing import Any

import keras
from keras import ops

from .convolution import as_data_format
from .dense import LowRankAdaptation
from .initializers import twin
from .packing import of_groups, unpacked
from .products import matmul
from .quantization import Quantizable, product_of_integers


@keras.saving.register_keras_serializable(package="layers")
class Embedding(Quantizable, LowRankAdaptation, keras.layers.Layer):
    """A table of vectors, one a token: `y = E[x]`; drop-in for `keras.layers.Embedding`.

    Args:
        input_dim: number of tokens.
        output_dim: width of a vector.
        embeddings_initializer, embeddings_regularizer, embeddings_constraint: of E, which is
            `(input_dim, output_dim)`.
        mask_zero: whether token 0 is padding, which later layers are told by a mask.
        weights: initial value of E.
        lora_rank: if given, E is frozen and `E + (lora_alpha / lora_rank) A B` used instead, A and B of this
            rank being trained.
        lora_alpha: scale of the change; None takes `lora_rank`.
        quantization_config: how a layer whose dtype is quantized, say "int8_from_float32", does it; None is
            as `quantize("int8")` does.

    Call arguments:
        inputs: integers of any shape `(batch, ...)`.

    Returns:
        Tensor `(batch, ..., output_dim)`.

    Raises:
        ValueError: if `input_dim` or `output_dim` is no positive integer.

    Reference:
        Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685, for `lora_rank`
    """

    modes = ("int8", "int4")
    matrix = "embeddings"
    shared_axis = 1
    in_file = ("embeddings",)

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        weights: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ):
        if kwargs.pop("input_length", None) is not None:
            warnings.warn("Argument `input_length` is deprecated. Just remove it.", stacklevel=2)
        for name, size in (("input_dim", input_dim), ("output_dim", output_dim)):
            if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
                raise ValueError(
                    f"`{name}` must be a positive integer. "
                    f"Received: {name}={size} (of type {type(size).__name__})."
                )
        super().__init__(**kwargs)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = keras.constraints.get(embeddings_constraint)
        self.mask_zero = mask_zero
        self.supports_masking = mask_zero
        # The rows that are taken are cast, not the whole table.
        self.autocast = False
        self.set_adaptation(lora_rank, lora_alpha)
        self.quantization_config = quantization_config
        if weights is not None:
            self.build()
            self.set_weights(weights if isinstance(weights, list) and len(weights) == 1 else [weights])

    def build(self, input_shape: tuple | None = None) -> None:
        """Make the table."""
        if self.built:
            return
        self.add_matrix((self.input_dim, self.output_dim))
        self.built = True
        self.adapt_if_asked()

    @property
    def embeddings(self) -> Any:
        """The table, with its low-rank change if there is one; of four bits, one integer a byte."""
        is_packed = self.built and self.quantization_mode == "int4"
        return self.integers() if is_packed else self.adapted_matrix()

    @property
    def matrix_shape(self) -> tuple:
        """`(input_dim, output_dim)`."""
        return (self.input_dim, self.output_dim)

    def call(self, inputs: Any) -> Any:
        """Look the tokens up."""
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        return ops.cast(ops.take(self.embeddings, inputs, axis=0), self.compute_dtype)

    def _int8_call(self, inputs: Any, training: bool | None = None) -> Any:
        """Look integers and scales up."""
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        rows = ops.cast(ops.take(self._embeddings, inputs, axis=0), self.compute_dtype)
        return self.adapted(
            rows / ops.expand_dims(ops.take(self.embeddings_scale, inputs, axis=0), -1), inputs
        )

    def _int4_call(self, inputs: Any, training: bool | None = None) -> Any:
        """Look bytes, scales and zeros up, and unpack only those."""
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        table, scale, *groups = self.quantization_variables()
        rows = unpacked(ops.take(table, inputs, axis=0), self.output_dim)
        scale = ops.take(scale, inputs, axis=0)
        if groups:
            zero, group = groups
            rows = of_groups(rows, scale, ops.take(zero, inputs, axis=0), group, -1, self.compute_dtype)
        else:
            rows = ops.cast(rows, self.compute_dtype) / ops.expand_dims(scale, -1)
        return self.adapted(rows, inputs)

    def adapted(self, outputs: Any, inputs: Any) -> Any:
        """The change of low rank of the rows looked up."""
        if self.lora_enabled:
            a, b = self.factors()
            change = ops.matmul(ops.take(a, inputs, axis=0), b)
            outputs = ops.cast(outputs + self.lora_alpha / self.lora_rank * change, self.compute_dtype)
        return outputs

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """False where the token is 0, if `mask_zero`."""
        return ops.not_equal(inputs, 0) if self.mask_zero else None

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """`(batch, ..., output_dim)`."""
        return (*input_shape, self.output_dim)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        config = {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "embeddings_constraint": keras.constraints.serialize(self.embeddings_constraint),
            "mask_zero": self.mask_zero,
        }
        return config | self.adaptation_config() | self.quantization_description()


@keras.saving.register_keras_serializable(package="layers")
class ReversibleEmbedding(Embedding):
    """An embedding that also leads back, from vectors to a score for each token; drop-in for Keras'.

        y = E[x];    reversed: logits = x E^T with tied weights, x R without

    Tied, a language model learns one table for what it reads and what it writes.

    Args:
        input_dim, output_dim: as in `Embedding`.
        tie_weights: whether R is the transpose of E, or a matrix of its own, `(output_dim, input_dim)`.
        embeddings_initializer, embeddings_regularizer, embeddings_constraint, mask_zero: as in `Embedding`.
        reverse_dtype: what the way back is computed in; None takes the layer's.
        logit_soft_cap: if given, logits are `cap * tanh(logits / cap)`.
        **kwargs: the further arguments of `Embedding`.

    Call arguments:
        inputs: integers `(batch, ...)`; reversed, vectors `(batch, ..., output_dim)`.
        reverse: whether to lead back.

    Returns:
        Tensor `(batch, ..., output_dim)`; reversed, `(batch, ..., input_dim)`.

    Reference:
        Press and Wolf, Using the Output Embedding to Improve Language Models, 2017,
        https://arxiv.org/abs/1608.05859
    """

    matrix = "embeddings"
    integer_inputs = ("int8", "int4")

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        tie_weights: bool = True,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        reverse_dtype: str | None = None,
        logit_soft_cap: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            input_dim,
            output_dim,
            embeddings_initializer,
            embeddings_regularizer,
            embeddings_constraint,
            mask_zero,
            **kwargs,
        )
        self.tie_weights = tie_weights
        self.reverse_dtype = reverse_dtype
        self.logit_soft_cap = logit_soft_cap

    def build(self, input_shape: tuple | None = None) -> None:
        """Make the table, and R where it is not tied to it."""
        if self.built:
            return
        super().build(input_shape)
        if not self.tie_weights and not self.quantization_mode:
            self._tracker.unlock()  # an adaptation of low rank has locked the layer's state
            initializer = self.embeddings_initializer
            self.reverse_embeddings = self.add_weight(
                name="reverse_embeddings",
                shape=(self.output_dim, self.input_dim),
                # One of its own: a shared initializer would repeat its numbers.
                initializer=twin(type(initializer).from_config(initializer.get_config())),
            )

    @property
    def variable_serialization_spec(self) -> dict:
        """For each mode the names of the variables in a file; those of R come last."""
        spec = super().variable_serialization_spec
        if self.tie_weights:
            return spec
        names = ["reverse_embeddings", "reverse_embeddings_scale", "reverse_embeddings_zero"]
        counts = {None: 1, "int8": 2, "int4": 3}
        return {mode: [*spec[mode], *names[: counts[mode]]] for mode in spec}

    def quantized_build(self, shape: tuple, mode: str, config: Any = None) -> None:
        """Make the tables of integers and their scales."""
        super().quantized_build(shape, mode, config)
        if self.tie_weights:
            return
        if hasattr(self, "reverse_embeddings"):
            del self.reverse_embeddings
        width = (self.output_dim + 1) // 2 if mode == "int4" else self.output_dim
        self.add_fixed("reverse_embeddings", (width, self.input_dim), "int8")
        # Of the transpose as of E; but in Keras the zeros of R are no integers.
        self.add_fixed("reverse_embeddings_scale", self.embeddings_scale.shape[::-1])
        if hasattr(self, "embeddings_zero"):
            self.add_fixed("reverse_embeddings_zero", self.embeddings_zero.shape[::-1])

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """Store the tables in few bits from now on; see `Quantizable.quantize`."""
        reverse = None if self.tie_weights else ops.transpose(self.reverse_embeddings.value)
        super().quantize(mode, type_check, config)
        if reverse is not None:
            quantizer = config and config.weight_quantizer
            values = self.stored_values(reverse, mode, self.group_size(config), quantizer)
            for name, value in zip(("", "_scale", "_zero"), values, strict=False):
                variable = getattr(self, f"reverse_embeddings{name}")
                variable.assign(ops.reshape(ops.transpose(value), variable.shape))

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        """Look the tokens up, or score them."""
        if not reverse:
            return super().call(inputs)
        dtype = self.reverse_dtype or self.compute_dtype
        kernel = ops.transpose(self.embeddings) if self.tie_weights else self.reverse_embeddings
        return self.capped(matmul(ops.cast(inputs, dtype), ops.cast(kernel, dtype)))

    def capped(self, logits: Any) -> Any:
        """The logits `(batch, ..., input_dim)` within the cap, if there is one."""
        if self.logit_soft_cap is None:
            return logits
        return self.logit_soft_cap * ops.tanh(logits / self.logit_soft_cap)

    def reverse_integers(self) -> tuple:
        """R's integers `(output_dim, input_dim)`, one in a byte, their scales and, of groups, zeros."""
        if self.tie_weights:
            _, scale, *groups = self.quantization_variables()
            scales = [ops.transpose(scale), ops.transpose(groups[0])] if groups else [scale]
            return ops.transpose(self.integers()), *scales
        names = ("reverse_embeddings", "reverse_embeddings_scale", "reverse_embeddings_zero")
        integers, *scales = (getattr(self, name) for name in names if hasattr(self, name))
        if self.quantization_mode == "int4":
            integers = ops.transpose(unpacked(ops.transpose(integers), self.output_dim))
        return integers, *scales

    def scores(self, inputs: Any) -> Any:
        """The logits, by R's integers, or by what those of groups stand for."""
        matrix, scale, *zero = self.reverse_integers()
        if zero:
            matrix = of_groups(matrix, scale, *zero, self.g_idx, 0, self.compute_dtype)
            scale = ops.ones((self.input_dim,), dtype=self.compute_dtype)
        quantizer, dtype = self.inputs_quantizer, self.compute_dtype
        return self.capped(product_of_integers(inputs, matrix, scale, quantizer, dtype))

    def _int8_call(self, inputs: Any, reverse: bool = False) -> Any:
        """Look integers and scales up, or score."""
        return self.scores(inputs) if reverse else super()._int8_call(inputs)

    def _int4_call(self, inputs: Any, reverse: bool = False) -> Any:
        """Look bytes, scales and zeros up, or score."""
        return self.scores(inputs) if reverse else super()._int4_call(inputs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """False where the token is 0, if `mask_zero`; scores have no mask, as in Keras."""
        tokens = keras.backend.is_int_dtype(inputs.dtype)
        return super().compute_mask(inputs, mask) if tokens else None

    def compute_output_shape(self, input_shape: tuple, reverse: bool = False) -> tuple:
        """`(batch, ..., output_dim)`, reversed `(batch, ..., input_dim)`."""
        return (*input_shape[:-1], self.input_dim) if reverse else super().compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> keras.KerasTensor:
        """Symbolic outputs: their shape depends on the direction."""
        dtype = (self.reverse_dtype if reverse else None) or self.compute_dtype
        return keras.KerasTensor(self.compute_output_shape(tuple(inputs.shape), reverse), dtype=dtype)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "tie_weights": self.tie_weights,
            "reverse_dtype": self.reverse_dtype,
            "logit_soft_cap": self.logit_soft_cap,
        }


@keras.saving.register_keras_serializable(package="layers")
class PatchEmbedding(keras.layers.Layer):
    """Cuts an image into square patches and maps each to a vector: `y_n = flatten(patch_n) W + b`.

    The same as a convolution whose stride is its kernel's size, as one matrix product. Patches are numbered
    row by row.

    Args:
        patch_size: side of a patch, which must divide height and width.
        embedding_dim: width of the vectors.
        use_bias: whether to add b.
        class_token: whether a learned vector is put before the patches.
        kernel_initializer, bias_initializer: of W `(patch_size^2 * channels, embedding_dim)` and b.
        data_format: "channels_last" or "channels_first"; None takes Keras' default.

    Call arguments:
        inputs: images `(batch, height, width, channels)`, height and width known.

    Returns:
        Tensor `(batch, height * width / patch_size^2, embedding_dim)`, one longer with a class token.

    Raises:
        ValueError: if the images do not divide into patches.

    Reference:
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, https://arxiv.org/abs/2010.11929
    """

    def __init__(
        self,
        patch_size: int,
        embedding_dim: int,
        use_bias: bool = True,
        class_token: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.embedding_dim = embedding_dim
        self.use_bias = use_bias
        self.class_token = class_token
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.data_format = as_data_format(data_format)

    def image_shape(self, input_shape: tuple) -> tuple:
        """Height, width and channels."""
        height, width, channels = input_shape[1:]
        return (height, width, channels) if self.data_format == "channels_last" else (width, channels, height)

    def build(self, input_shape: tuple) -> None:
        """Make W, b and the class token."""
        height, width, channels = self.image_shape(input_shape)
        if None in (height, width) or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Images must divide into patches of {self.patch_size} x {self.patch_size}. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.patch_size**2 * channels, self.embedding_dim),
            initializer=twin(self.kernel_initializer),
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.embedding_dim,), initializer=self.bias_initializer
            )
        if self.class_token:
            self.token = self.add_weight(name="token", shape=(1, 1, self.embedding_dim), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        if self.data_format == "channels_first":
            inputs = ops.transpose(inputs, (0, 2, 3, 1))
        height, width, channels = inputs.shape[1:]
        side, rows, columns = self.patch_size, height // self.patch_size, width // self.patch_size
        grid = ops.reshape(inputs, (-1, rows, side, columns, side, channels))
        patches = ops.reshape(
            ops.transpose(grid, (0, 1, 3, 2, 4, 5)), (-1, rows * columns, side * side * channels)
        )
        outputs = matmul(patches, self.kernel)  # (batch, patches, embedding_dim)
        if self.use_bias:
            outputs = outputs + self.bias
        if self.class_token:
            token = ops.broadcast_to(self.token, (ops.shape(outputs)[0], 1, self.embedding_dim))
            outputs = ops.concatenate([ops.cast(token, outputs.dtype), outputs], axis=1)
        return outputs

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """`(batch, patches, embedding_dim)`."""
        height, width, _ = self.image_shape(input_shape)
        patches = (height // self.patch_size) * (width // self.patch_size)
        return (input_shape[0], patches + self.class_token, self.embedding_dim)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "embedding_dim": self.embedding_dim,
            "use_bias": self.use_bias,
            "class_token": self.class_token,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "data_format": self.data_format,
        }
