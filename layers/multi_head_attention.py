"""Multi-head attention: queries, keys and values projected for every head, attended, and projected back.

`MultiHeadAttention` has as many key heads as query heads, over any axes; `GroupedQueryAttention` lets query
heads share key heads. Both take masks, an encoding of `layers.positional`, and a key/value cache, with
which a decoder computes one token at a time what the whole sequence at once would give.
"""

import math
from typing import Any

import keras
from keras import ops

from . import float8
from .attention import LOWEST_SCORE, causal_mask, scaled_dot_product_attention
from .dense import LowRankAdaptation
from .products import matmul
from .quantization import Quantizable, QuantizableParts, product_of_integers
from .regularization import Dropout


def check_source_shapes(value_shape: tuple, key_shape: tuple) -> None:
    """Raise ValueError if values and keys are not of the same tokens."""
    if tuple(value_shape[1:-1]) != tuple(key_shape[1:-1]):
        raise ValueError(
            "All dimensions of `value` and `key`, except the last one, must be equal. "
            f"Received: value_shape={value_shape} and key_shape={key_shape}"
        )


@keras.saving.register_keras_serializable(package="layers")
class HeadProjection(Quantizable, LowRankAdaptation, keras.layers.Layer):
    """Linear map between features and heads: contracts the last axes of x with the first of the kernel.

        y[..., o] = sum_i x[..., i] W[i, o] + b[o],   i and o being several axes each

    Args:
        output_shape: the axes o, such as `(num_heads, head_dim)`.
        contracted_axes: how many last axes of the input i is.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint: as everywhere in Keras.
        quantization_config: as in `Dense`.

    Call arguments:
        inputs: shape `(..., *i)`.

    Returns:
        Tensor `(..., *o)`.
    """

    modes = ("int8", "int4", "float8")
    matrix = "kernel"
    shared_axis = 0
    in_file = ("kernel", "bias")

    def __init__(
        self,
        output_shape: tuple,
        contracted_axes: int = 1,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.projected_shape = tuple(output_shape)
        self.contracted_axes = contracted_axes
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.set_adaptation(lora_rank=None, lora_alpha=None)
        self.quantization_config = quantization_config
        self.supports_masking = True

    @property
    def matrix_shape(self) -> tuple:
        """`(*i, *o)`, however the kernel is stored."""
        return (*self.contracted_shape, *self.projected_shape)

    def flat(self, matrix: Any) -> Any:
        """`(*i, *o)` with all axes of a kind in one."""
        return ops.reshape(matrix, (math.prod(self.contracted_shape), math.prod(self.projected_shape)))

    def quantized_build(self, shape: tuple, mode: str, config: Any = None) -> None:
        """Make the kernel of integers, of four bits as a matrix."""
        if mode == "int4":
            shape = (math.prod(self.contracted_shape), math.prod(self.projected_shape))
        super().quantized_build(shape, mode, config)

    def scale_shape(self, shape: tuple, mode: str) -> tuple:
        """Keras' scales of eight bits are those of the output, `(1, ..., *o)`."""
        if mode == "int4":
            return super().scale_shape(shape, mode)
        return (*[1] * self.leading_axes, *self.projected_shape)

    def build(self, input_shape: tuple) -> None:
        """Make `kernel` `(*i, *o)` and `bias` `(*o,)`."""
        self.leading_axes = len(input_shape) - self.contracted_axes
        contracted = self.contracted_shape = tuple(input_shape[-self.contracted_axes :])
        shape = contracted + self.projected_shape
        initializer = self.kernel_initializer
        if isinstance(initializer, keras.initializers.VarianceScaling) and initializer.input_axes is None:
            # The fans of the flattened matrix, not those of a convolution kernel of this rank.
            config = {**initializer.get_config(), "seed": initializer.seed}
            config["input_axes"] = list(range(len(contracted)))
            config["output_axes"] = list(range(len(contracted), len(shape)))
            initializer = type(initializer).from_config(config)
        self.add_matrix(shape, initializer)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=self.projected_shape,
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(..., *i) -> (..., *o)`."""
        # One matrix product over all leading axes: faster than any einsum of the same meaning.
        return self.finish(matmul(self.rows(inputs), self.flat(self.kernel)), inputs, self.bias)

    def rows(self, inputs: Any) -> Any:
        """`(..., *i)` as a matrix."""
        return ops.reshape(inputs, (-1, math.prod(inputs.shape[-self.contracted_axes :])))

    def finish(self, outputs: Any, inputs: Any, bias: Any) -> Any:
        """Bias, and all axes again."""
        leading = ops.shape(inputs)[: len(inputs.shape) - self.contracted_axes]
        if bias is not None:
            outputs = outputs + ops.reshape(bias, (-1,))
        return ops.reshape(outputs, (*leading, *self.projected_shape))

    def _float8_call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product of factors rounded to eight bits."""
        outputs = float8.product(self, self.rows(inputs), self.flat(self._kernel), training)
        return self.finish(outputs, inputs, float8.bias_of(self))

    def _int8_call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product of integers."""
        outputs = product_of_integers(
            self.rows(inputs),
            self.flat(self.integers()),
            ops.reshape(self.kernel_scale, (-1,)),
            self.inputs_quantizer,
            self.compute_dtype,
        )
        return self.adapted(outputs, inputs)

    def _int4_call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product with what the integers stand for, or, with an activation quantizer, of integers."""
        if self.inputs_quantizer:
            return self._int8_call(inputs)
        return self.adapted(ops.matmul(self.rows(inputs), self.dequantized()), inputs)

    def adapted(self, outputs: Any, inputs: Any) -> Any:
        """The change of low rank, bias and all axes again."""
        if self.lora_enabled:
            change = ops.matmul(self.rows(inputs), self.flat(self.change()))
            outputs = ops.cast(outputs + change, self.compute_dtype)
        return self.finish(outputs, inputs, self.bias)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The last axes replaced by the projected ones."""
        return (*input_shape[: -self.contracted_axes], *self.projected_shape)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "output_shape": self.projected_shape,
            "contracted_axes": self.contracted_axes,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            **self.quantization_description(),
        }


class HeadedAttention(QuantizableParts, keras.layers.Layer):
    """What multi-head and grouped-query attention share; subclasses give the projections their shapes."""

    def __init__(
        self,
        dropout: float,
        use_bias: bool,
        sliding_window: int | None,
        flash_attention: bool | None,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        activity_regularizer: Any,
        kernel_constraint: Any,
        bias_constraint: Any,
        use_gate: bool,
        seed: int | None,
        position: keras.layers.Layer | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if sliding_window is not None and (not isinstance(sliding_window, int) or sliding_window <= 0):
            raise ValueError(
                "`sliding_window` must be `None` or a positive integer. "
                f"Received: sliding_window={sliding_window}"
            )
        self._flash_attention = flash_attention or keras.config.is_flash_attention_enabled()
        if self._flash_attention and dropout > 0.0:
            raise ValueError(
                "Dropout is not supported when flash attention is enabled. "
                "Please set dropout to 0.0 to use flash attention."
            )
        self._dropout = dropout
        self._use_bias = use_bias
        self._sliding_window = sliding_window
        self._kernel_initializer = keras.initializers.get(kernel_initializer)
        self._bias_initializer = keras.initializers.get(bias_initializer)
        self._kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self._bias_regularizer = keras.regularizers.get(bias_regularizer)
        self._projection_activity_regularizer = keras.regularizers.get(activity_regularizer)
        self._kernel_constraint = keras.constraints.get(kernel_constraint)
        self._bias_constraint = keras.constraints.get(bias_constraint)
        self._use_gate = use_gate
        self.seed = seed
        self.position = position
        self.supports_masking = True
        # Without dropout there is no seed among the variables, as in Keras.
        self._dropout_layer = Dropout(dropout, seed=seed, dtype=self.dtype_policy) if dropout > 0 else None

    @property
    def dropout(self) -> float:
        """Fraction of the weights dropped in training."""
        return self._dropout

    @property
    def use_bias(self) -> bool:
        """Whether the projections have a bias."""
        return self._use_bias

    @property
    def query_dense(self) -> HeadProjection:
        """The projection of the queries."""
        return self._query_dense

    @property
    def key_dense(self) -> HeadProjection:
        """The projection of the keys."""
        return self._key_dense

    @property
    def value_dense(self) -> HeadProjection:
        """The projection of the values."""
        return self._value_dense

    @property
    def output_dense(self) -> HeadProjection:
        """The projection of the heads' outputs."""
        return self._output_dense

    def _projection(
        self, name: str, input_shape: tuple, output_shape: tuple, contracted_axes: int = 1
    ) -> HeadProjection:
        """A built projection with an initializer of its own: one shared would repeat its numbers."""
        initializers = {
            f"{part}_initializer": type(initializer).from_config(initializer.get_config())
            for part, initializer in (("kernel", self._kernel_initializer), ("bias", self._bias_initializer))
        }
        layer = HeadProjection(
            output_shape,
            contracted_axes,
            use_bias=self._use_bias,
            kernel_regularizer=self._kernel_regularizer,
            bias_regularizer=self._bias_regularizer,
            activity_regularizer=self._projection_activity_regularizer,
            kernel_constraint=self._kernel_constraint,
            bias_constraint=self._bias_constraint,
            dtype=self.dtype_policy,
            name=name,
            **initializers,
        )
        layer.build(input_shape)
        return layer

    def _build_projections(
        self,
        shapes: tuple,
        query_heads: tuple,
        key_heads: tuple,
        value_heads: tuple,
        output_shape: tuple,
    ) -> None:
        """Make the four projections, or five with a gate, in Keras' order."""
        query_shape, key_shape, value_shape = shapes
        output_heads = (query_heads[0], value_heads[1])
        self._query_dense = self._projection("query", query_shape, query_heads)
        self._key_dense = self._projection("key", key_shape, key_heads)
        if self._use_gate:
            self._gate_dense = self._projection("gate", query_shape, output_heads)
        self._value_dense = self._projection("value", value_shape, value_heads)
        self._output_dense = self._projection(
            "attention_output", (*query_shape[:-1], *output_heads), output_shape, contracted_axes=2
        )
        if self.position is not None:
            if len(query_shape) != 3:
                raise ValueError(
                    "A `position` needs inputs of shape (batch, length, features). "
                    f"Received: query_shape={tuple(query_shape)}"
                )
            self.position.build((query_shape[0], query_heads[0], query_shape[1], query_heads[1]))

    def _source_heads(self, value: Any, key: Any, start: Any) -> tuple[Any, Any]:
        """Keys `(B, S, G, H)` and values `(B, S, G, V)` of tokens from position `start` on."""
        keys, values = self._key_dense(value if key is None else key), self._value_dense(value)
        if self.position is not None:
            keys = self.position.rotate(keys, ops.arange(ops.shape(keys)[1], dtype="int32") + start)
        return keys, values

    def project_source(self, value: Any, key: Any = None, mask: Any = None) -> tuple[Any, Any, Any]:
        """The cache of a source that stays as it is: the encoder's output, for a decoder.

        Args:
            value: shape `(batch, S, features)`.
            key: shape `(batch, S, features)`; None takes `value`.
            mask: boolean `(batch, S)`, False for padding; None for no padding.

        Returns:
            Keys `(batch, S, G, H)`, values `(batch, S, G, V)` and mask `(batch, S)`. Given as `cache` without
            an index, they save projecting the source again.
        """
        keys, values = self._source_heads(value, key, 0)
        mask = ops.ones(ops.shape(keys)[:2], "bool") if mask is None else ops.cast(mask, "bool")
        return keys, values, mask

    def empty_cache(self, batch_size: int, length: int) -> tuple[Any, Any, Any]:
        """A cache for `length` tokens: keys, values, and a mask that says which slots are filled."""
        shapes = (self._key_dense.projected_shape, self._value_dense.projected_shape)
        heads = (ops.zeros((batch_size, length, *shape), self.compute_dtype) for shape in shapes)
        return (*heads, ops.zeros((batch_size, length), "bool"))

    def _updated(self, cache: tuple, value: Any, key: Any, mask: Any, start: Any) -> tuple:
        """The cache with the new tokens written from slot `start` on."""
        keys, values = self._source_heads(value, key, start)
        filled = ops.ones(ops.shape(keys)[:2], "bool") if mask is None else ops.cast(mask, "bool")
        return tuple(
            ops.slice_update(old, (0, start, 0, 0)[: len(old.shape)], ops.cast(new, old.dtype))
            for old, new in zip(cache, (keys, values, filled), strict=True)
        )

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        cache: tuple | None = None,
        cache_update_index: Any = None,
    ) -> Any:
        """Attend; see the class for arguments and shapes."""
        decoding = cache_update_index is not None
        if decoding and cache is None:
            raise ValueError("`cache_update_index` says where to write in a `cache`, and none was given.")
        start = ops.cast(cache_update_index, "int32") if decoding else 0
        if decoding:
            cache = self._updated(cache, value, key, value_mask if key_mask is None else key_mask, start)
        if cache is None:
            keys, values = self._source_heads(value, key, 0)  # (B, S, G, H), (B, S, G, V)
        else:
            keys, values, value_mask = cache
            key_mask = None
        positions = (
            ops.arange(ops.shape(query)[1], dtype="int32") + start,
            ops.arange(ops.shape(keys)[1], dtype="int32"),
        )
        heads = self._query_dense(query)  # (B, T, N, H)
        if self.position is not None:
            heads = self.position.rotate(heads, positions[0])

        # `_compute_attention` is Keras' point of extension: overrides written for it know neither positions
        # nor a causal mask that is not in the mask.
        extra = {"return_attention_scores": True} if return_attention_scores else {}
        if self.position is not None:
            extra["positions"] = positions
        overridden = type(self)._compute_attention is not HeadedAttention._compute_attention
        masks = (query_mask, value_mask, key_mask, attention_mask)
        unmasked = self._sliding_window is None and all(mask is None for mask in masks)
        if use_causal_mask and unmasked and not overridden:
            extra["use_causal_mask"] = True
        else:
            # Among new tokens that are written together, the later ones are hidden from the earlier.
            attention_mask = self._combined_mask(positions, *masks, causal=use_causal_mask or decoding)
        outputs, scores = self._compute_attention(
            heads, keys, values, attention_mask=attention_mask, training=training, **extra
        )  # (B, T, N, V), (B, N, T, S)
        if self._use_gate:
            outputs = outputs * ops.sigmoid(self._gate_dense(query))
        outputs = self._output_dense(outputs)  # (B, T, E)
        return self._results(
            outputs, scores if return_attention_scores else None, cache if decoding else None
        )

    def _results(self, outputs: Any, scores: Any, cache: tuple | None) -> Any:
        """The outputs alone, or a tuple with what else was asked for."""
        results = (outputs, *(extra for extra in (scores, cache) if extra is not None))
        return results if len(results) > 1 else outputs

    def _combined_mask(
        self,
        positions: tuple,
        query_mask: Any,
        value_mask: Any,
        key_mask: Any,
        attention_mask: Any,
        causal: bool,
    ) -> Any:
        """All masks as one, broadcastable to `(batch, T, S)`; None if there is none."""
        query_positions, key_positions = positions
        masks = []
        if attention_mask is not None:
            masks.append(ops.cast(attention_mask, "bool"))
        if query_mask is not None:
            masks.append(ops.expand_dims(ops.cast(query_mask, "bool"), -1))  # (B, T, 1)
        for mask in (value_mask, key_mask):
            if mask is not None:
                masks.append(ops.expand_dims(ops.cast(mask, "bool"), -2))  # (B, 1, S)
        if causal:
            masks.append(ops.expand_dims(causal_mask(query_positions, key_positions), 0))  # (1, T, S)
        if self._sliding_window is not None:
            distance = ops.expand_dims(query_positions, -1) - ops.expand_dims(key_positions, 0)
            masks.append(ops.expand_dims(ops.abs(distance) < self._sliding_window, 0))  # (1, T, S)
        combined = None
        for mask in masks:
            combined = mask if combined is None else ops.logical_and(combined, mask)
        return combined

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        positions: tuple | None = None,
    ) -> tuple[Any, Any]:
        """Attention between heads: `(B, T, N, H), (B, S, G, H), (B, S, G, V) -> (B, T, N, V), (B, N, T, S)`.

        Subclasses may override it. The second result is None unless the scores were asked for. `positions`
        are those of queries `(T,)` and keys `(S,)`; None leaves the layer's `position` out.
        """
        if self._flash_attention and return_attention_scores:
            raise ValueError(
                "Returning attention scores is not supported when flash attention is enabled. "
                "Please disable flash attention to access attention scores."
            )
        plain = not (self._dropout > 0 or return_attention_scores or len(query.shape) != 4)
        queries, keys, values = (self._heads_first(x) for x in (query, key, value))  # (..., N, T, H)
        bias = context = None
        if positions is not None:
            bias = self.position.bias(queries, *positions)
            if self.position.adds_context:

                def context(weights: Any) -> Any:
                    return self.position.context(weights, *positions)

        kernel = plain and bias is None and self._kernel_is_faster(query)
        if use_causal_mask and not (kernel and attention_mask is None):
            causal = causal_mask(ops.arange(ops.shape(query)[1]), ops.arange(ops.shape(key)[1]))
            causal = ops.expand_dims(causal, 0)
            if attention_mask is not None:
                causal = ops.logical_and(ops.cast(attention_mask, "bool"), causal)
            attention_mask, use_causal_mask = causal, False
        if attention_mask is not None:
            attention_mask = self._scores_mask(attention_mask, query, key)
        if kernel:
            repeats = query.shape[2] // key.shape[2]
            if repeats > 1:
                key, value = ops.repeat(key, repeats, axis=2), ops.repeat(value, repeats, axis=2)
            outputs = ops.dot_product_attention(
                query,
                key,
                value,
                mask=attention_mask,
                scale=1 / math.sqrt(query.shape[-1]),
                is_causal=use_causal_mask,
                flash_attention=self._flash_attention,
            )
            return outputs, None

        dropping = training and self._dropout_layer is not None
        results = scaled_dot_product_attention(
            queries,
            keys,
            values,
            mask=attention_mask,
            bias=bias,
            dropout=(lambda weights: self._dropout_layer(weights, training=True)) if dropping else None,
            context=context,
            # What a query gets that may look nowhere follows Keras: nothing where Keras computes scores,
            # the mean of all values where it uses its kernel.
            masked_score=LOWEST_SCORE if plain else -math.inf,
            return_weights=return_attention_scores,
        )
        outputs, scores = results if return_attention_scores else (results, None)
        return self._heads_last(outputs, query), self._unflattened(scores, query, key)

    def _kernel_is_faster(self, query: Any) -> bool:
        """Whether the backend's attention kernel is asked for, or beats the matrix products."""
        dtype = keras.backend.standardize_dtype(query.dtype)
        backend = keras.backend.backend()
        # Within a compiled function JAX's kernel refuses float16 on CPUs.
        return bool(self._flash_attention) or backend == "torch" or (backend, dtype) == ("jax", "bfloat16")

    def _lengths(self, x: Any) -> tuple:
        """The sizes of the attended axes."""
        shape = ops.shape(x)
        return tuple(shape[axis] for axis in self._attention_axes)

    def _heads_first_order(self, rank: int) -> tuple:
        """Axes in the order: not attended (the heads last of them), attended, features."""
        kept = tuple(axis for axis in range(rank - 1) if axis not in self._attention_axes)
        return (*kept, *self._attention_axes, rank - 1)

    def _heads_first(self, x: Any) -> Any:
        """`(B, ..., N, H) -> (B, ..., N, T, H)`, all attended axes flattened into T."""
        x = ops.transpose(x, self._heads_first_order(len(x.shape)))
        if len(self._attention_axes) == 1:
            return x
        shape = ops.shape(x)
        return ops.reshape(x, (*shape[: -len(self._attention_axes) - 1], -1, shape[-1]))

    def _heads_last(self, x: Any, query: Any) -> Any:
        """The inverse of `_heads_first`, for outputs that belong to `query`."""
        if len(self._attention_axes) > 1:
            shape = ops.shape(x)
            x = ops.reshape(x, (*shape[:-2], *self._lengths(query), shape[-1]))
        order = self._heads_first_order(len(x.shape))
        return ops.transpose(x, [order.index(axis) for axis in range(len(order))])

    def _unflattened(self, scores: Any, query: Any, key: Any) -> Any:
        """`(B, ..., N, T, S)` with T and S as the attended axes that they are."""
        if scores is None or len(self._attention_axes) == 1:
            return scores
        return ops.reshape(scores, (*ops.shape(scores)[:-2], *self._lengths(query), *self._lengths(key)))

    def _scores_mask(self, mask: Any, query: Any, key: Any) -> Any:
        """A mask over batch and attended axes, or the last of them, broadcastable to `(B, ..., N, T, S)`."""
        mask = ops.cast(mask, "bool")
        count = len(self._attention_axes)
        for _ in range(len(query.shape) - 1 + count - len(mask.shape)):
            mask = ops.expand_dims(mask, -2 * count - 1)
        if count == 1:
            return mask
        leading = ops.shape(mask)[: -2 * count]
        targets, sources = self._lengths(query), self._lengths(key)
        mask = ops.broadcast_to(mask, (*leading, *targets, *sources))
        return ops.reshape(mask, (*leading, math.prod(targets), math.prod(sources)))

    def attended_axes(self, rank: int) -> tuple:
        """The axes along which inputs of this rank attend, counted from the first."""
        axes = range(1, rank - 1) if self._attention_axes is None else self._attention_axes
        return tuple(axis % rank for axis in axes)

    def compute_output_spec(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        cache: tuple | None = None,
        cache_update_index: Any = None,
    ) -> Any:
        """Symbolic outputs, and scores and cache where they are returned."""
        shape = self.compute_output_shape(query.shape, value.shape, None if key is None else key.shape)
        source = value.shape if cache is None else cache[0].shape
        axes = self.attended_axes(len(query.shape))
        kept = tuple(size for axis, size in enumerate(query.shape[:-1]) if axis not in axes)
        lengths = tuple(sizes[axis] for sizes in (query.shape, source) for axis in axes)
        scores = keras.KerasTensor((*kept, self._num_heads, *lengths), self.compute_dtype)
        return self._results(
            keras.KerasTensor(shape, dtype=self.compute_dtype),
            scores if return_attention_scores else None,
            cache if cache_update_index is not None else None,
        )

    def get_config(self) -> dict:
        """The arguments of the constructor that both layers have."""
        config = {
            **super().get_config(),
            "dropout": self._dropout,
            "use_bias": self._use_bias,
            "use_gate": self._use_gate,
            "sliding_window": self._sliding_window,
            "kernel_initializer": keras.initializers.serialize(self._kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self._bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self._kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self._bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self._projection_activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self._kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self._bias_constraint),
            "seed": self.seed,
        }
        if self.position is not None:
            config["position"] = keras.saving.serialize_keras_object(self.position)
        return config

    @classmethod
    def from_config(cls, config: dict) -> "HeadedAttention":
        """The layer that `get_config` describes."""
        if "position" in config:
            config = {**config, "position": keras.saving.deserialize_keras_object(config["position"])}
        return cls(**config)


@keras.saving.register_keras_serializable(package="layers")
class MultiHeadAttention(HeadedAttention):
    """Multi-head attention, drop-in for `keras.layers.MultiHeadAttention`.

        Q_n = query W^Q_n,   K_n = key W^K_n,   V_n = value W^V_n
        head_n = softmax(Q_n K_n^T / sqrt(key_dim)) V_n
        output = sum_n head_n W^O_n + b

    Args:
        num_heads: number of heads N.
        key_dim: width H of a head's queries and keys.
        value_dim: width V of a head's values; None takes `key_dim`.
        dropout: fraction of the weights dropped in training.
        use_bias: whether the projections have a bias.
        output_shape: shape of an output, an int or a tuple; None takes the width of the queries.
        attention_axes: axes attended over, an int or a tuple; None takes all but batch and features.
        sliding_window: a query sees only keys less than this far from it; None sees all.
        flash_attention: whether the backend's flash kernel must be used; None lets the backend choose.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint: of the projections.
        use_gate: whether the heads' outputs are multiplied by a sigmoid gate of the query.
        seed: integer seed of the dropout.
        position: an encoding of `layers.positional` that acts inside the attention: `RotaryEmbedding`,
            `RelativePositionBias`, `ShawRelativePosition`, `ALiBi`; None for none.

    Call arguments:
        query: shape `(B, T, dim)`.
        value: shape `(B, S, dim)`.
        key: shape `(B, S, dim)`; None takes `value`.
        query_mask, value_mask, key_mask: boolean `(B, T)`, `(B, S)`, `(B, S)`; taken from the inputs' Keras
            masks when not given.
        attention_mask: boolean, broadcastable to `(B, T, S)`, or `(B, N, T, S)`; True where a query may look.
        return_attention_scores: whether to return the weights too.
        training: whether to drop weights.
        use_causal_mask: whether a query may look only at keys that do not come after it.
        cache: what earlier calls saw, from `empty_cache` or the last call, with `cache_update_index`; or a
            fixed source, from `project_source`, without it, in which case `value` and `key` are not used.
        cache_update_index: integer position of the first of the T new tokens, which are written there. A
            query sees the tokens in the cache up to itself, but for those that were masked.

    Returns:
        Output `(B, T, dim)`, or a tuple of it, the weights `(B, N, T, S)` if `return_attention_scores`, and
        the new cache if `cache_update_index` was given.

    Raises:
        ValueError: for arguments out of range; for dropout or returned scores with `flash_attention`; if
            value and key differ in length.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, section 3.2.2;
        the gate: Qiu et al., Gated Attention for Large Language Models, 2025, https://arxiv.org/abs/2505.06708
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple | None = None,
        attention_axes: int | tuple | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        position: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        sizes = {"num_heads": num_heads, "key_dim": key_dim, "value_dim": value_dim}
        for name, size in sizes.items():
            optional = name == "value_dim"
            if not (optional and size is None) and (not isinstance(size, int) or size <= 0):
                raise ValueError(
                    f"Received an invalid value for argument `{name}`, expected a positive integer"
                    f"{' or `None`' if optional else ''}. Received: {name}={size}"
                )
        if output_shape:
            try:
                output_shape = (output_shape,) if isinstance(output_shape, int) else tuple(output_shape)
            except TypeError:
                raise ValueError(
                    f"Invalid `output_shape`: {output_shape}. When specified, the `output_shape` should be "
                    "of type tuple, list, or int."
                ) from None
        if isinstance(attention_axes, int):
            attention_axes = (attention_axes,)
        elif attention_axes and not isinstance(attention_axes, (list, tuple)):
            raise ValueError(
                f"`attention_axes` must be an int, list, or tuple. Received: attention_axes={attention_axes}"
            )
        super().__init__(
            dropout=dropout,
            use_bias=use_bias,
            sliding_window=sliding_window,
            flash_attention=flash_attention,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            use_gate=use_gate,
            seed=seed,
            position=position,
            **kwargs,
        )
        self._num_heads = num_heads
        self._key_dim = key_dim
        self._value_dim = value_dim or key_dim
        self._output_shape = output_shape
        self._attention_axes = attention_axes

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self._num_heads

    @property
    def key_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self._key_dim

    @property
    def value_dim(self) -> int:
        """Width of a head's values."""
        return self._value_dim

    @property
    def attention_axes(self) -> tuple | None:
        """The axes attended over, non-negative once the layer is built."""
        return self._attention_axes

    def build(self, query_shape: tuple, value_shape: tuple, key_shape: tuple | None = None) -> None:
        """Make the projections."""
        key_shape = value_shape if key_shape is None else key_shape
        check_source_shapes(value_shape, key_shape)
        self._attention_axes = self.attended_axes(len(value_shape))
        self._build_projections(
            (query_shape, key_shape, value_shape),
            query_heads=(self._num_heads, self._key_dim),
            key_heads=(self._num_heads, self._key_dim),
            value_heads=(self._num_heads, self._value_dim),
            output_shape=self._output_shape or (query_shape[-1],),
        )

    def compute_output_shape(
        self, query_shape: tuple, value_shape: tuple, key_shape: tuple | None = None
    ) -> tuple:
        """The query's shape, its last axis replaced by `output_shape` if there is one."""
        check_source_shapes(value_shape, value_shape if key_shape is None else key_shape)
        return (*query_shape[:-1], *(self._output_shape or query_shape[-1:]))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_heads": self._num_heads,
            "key_dim": self._key_dim,
            "value_dim": self._value_dim,
            "output_shape": self._output_shape,
            "attention_axes": self._attention_axes,
        }


@keras.saving.register_keras_serializable(package="layers")
class GroupedQueryAttention(HeadedAttention):
    """Grouped-query attention, drop-in for `keras.layers.GroupQueryAttention`.

        head_n = softmax(Q_n K_g^T / sqrt(head_dim)) V_g,   g = n * num_key_value_heads // num_query_heads

    With one key head this is multi-query attention, with as many as query heads multi-head attention. Fewer
    key heads make the cache smaller. Keys are not repeated: query heads that share one are rows of the same
    matrix product.

    Args:
        head_dim: width H of a head.
        num_query_heads: number of query heads N.
        num_key_value_heads: number of key and value heads G, a divisor of N.
        dropout, use_bias, sliding_window, flash_attention, kernel_initializer, bias_initializer,
            kernel_regularizer, bias_regularizer, activity_regularizer, kernel_constraint, bias_constraint,
            use_gate, seed, position: as in `MultiHeadAttention`.

    Call arguments, Returns: as in `MultiHeadAttention`.

    Raises:
        ValueError: if G does not divide N; for dropout or returned scores with `flash_attention`.

    Reference:
        Ainslie et al., GQA, 2023, https://arxiv.org/abs/2305.13245
    """

    def __init__(
        self,
        head_dim: int,
        num_query_heads: int,
        num_key_value_heads: int,
        dropout: float = 0.0,
        use_bias: bool = True,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        position: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        if num_query_heads % num_key_value_heads != 0:
            raise ValueError("`num_query_heads` must be divisible by `num_key_value_heads`.")
        super().__init__(
            dropout=dropout,
            use_bias=use_bias,
            sliding_window=sliding_window,
            flash_attention=flash_attention,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            use_gate=use_gate,
            seed=seed,
            position=position,
            **kwargs,
        )
        # Keras' layer penalises its output as well as its projections.
        self.activity_regularizer = self._projection_activity_regularizer
        self.head_dim = head_dim
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self._attention_axes = (1,)
        self._num_heads = num_query_heads

    @property
    def use_gate(self) -> bool:
        """Whether the heads' outputs are gated."""
        return self._use_gate

    @property
    def sliding_window(self) -> int | None:
        """How far a query sees, or None."""
        return self._sliding_window

    def build(self, query_shape: tuple, value_shape: tuple, key_shape: tuple | None = None) -> None:
        """Make the projections."""
        query_heads = (self.num_query_heads, self.head_dim)
        key_heads = (self.num_key_value_heads, self.head_dim)
        self._build_projections(
            (query_shape, value_shape if key_shape is None else key_shape, value_shape),
            query_heads=query_heads,
            key_heads=key_heads,
            value_heads=key_heads,
            output_shape=(query_shape[-1],),
        )

    def compute_output_shape(
        self, query_shape: tuple, value_shape: tuple, key_shape: tuple | None = None
    ) -> tuple:
        """The query's shape."""
        if query_shape[-1] != value_shape[-1]:
            raise ValueError(
                "The last dimension of `query_shape` and `value_shape` must be equal, but are "
                f"{query_shape[-1]}, {value_shape[-1]}. Received: query_shape={query_shape}, "
                f"value_shape={value_shape}"
            )
        check_source_shapes(value_shape, value_shape if key_shape is None else key_shape)
        return tuple(query_shape)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "head_dim": self.head_dim,
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
        }
