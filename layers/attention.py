"""Attention: each query takes a weighted mean of values, weighted by how well their keys match it.

Three families share the arithmetic at the top of the file: one set of weights over the inputs as they
are (`Attention`, `AdditiveAttention`, `LuongAttention`), and many projected heads (`MultiHeadAttention`,
`GroupedQueryAttention`), which also decode token by token from a key/value cache and take any encoding of
`layers.positional`.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from .initializers import twin
from .regularization import Dropout

# Finite, so that a row in which everything is masked has equal weights instead of none.
LOWEST_SCORE = -0.7 * float(np.finfo("float32").max)


def exponentials(scores: Any, axis: int = -1, finite: bool = False) -> tuple[Any, Any]:
    """Numerator and denominator of the softmax, kept apart: `exp(x - max x)` and its sum over `axis`.

    The maximum is subtracted so that no exponential overflows. Where a whole row is minus infinity, the
    numerators are 0 and the denominator is 1: such a row gets weight nowhere, not NaN. Where no row can be,
    `finite` saves the guard against it.
    """
    highest = ops.stop_gradient(ops.max(scores, axis=axis, keepdims=True))
    if finite:
        numerators = ops.exp(scores - highest)
        return numerators, ops.sum(numerators, axis=axis, keepdims=True)
    highest = ops.where(ops.isfinite(highest), highest, ops.zeros_like(highest))
    numerators = ops.exp(scores - highest)
    totals = ops.sum(numerators, axis=axis, keepdims=True)
    return numerators, ops.where(ops.equal(totals, 0), ops.ones_like(totals), totals)


def softmax(scores: Any, axis: int = -1) -> Any:
    """Softmax: `exp(x_i - max x) / sum_j exp(x_j - max x)`; zero in a row that is all minus infinity.

    The activation of the same name is NaN there, as a function of logits should be.

    Args:
        scores: tensor of any shape.
        axis: the axis to normalise over.

    Returns:
        Tensor of the same shape.
    """
    numerators, totals = exponentials(scores, axis)
    return numerators / totals


def kernel_softmax(scores: Any, mask: Any, masked_score: float) -> Any:
    """The same by the backend's kernel, which on PyTorch and TensorFlow is faster than its parts.

    Finite scores only: the kernel is NaN in a row of minus infinity. Masked ones are therefore replaced by
    the lowest score, and their weights by zero if `masked_score` is minus infinity.
    """
    if mask is None:
        return ops.softmax(scores, axis=-1)
    weights = ops.softmax(ops.where(mask, scores, LOWEST_SCORE), axis=-1)
    return ops.where(mask, weights, 0.0) if masked_score == -math.inf else weights


def causal_mask(query_positions: Any, key_positions: Any) -> Any:
    """Boolean mask `(T, S)`: a query sees the keys that do not come after it."""
    return ops.expand_dims(query_positions, -1) >= ops.expand_dims(key_positions, 0)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    dropout: Callable | None = None,
    context: Callable | None = None,
    masked_score: float = -math.inf,
    return_weights: bool = False,
) -> Any:
    """Scaled dot-product attention: `softmax(scale * Q K^T + bias) V`.

    Args:
        query: shape `(..., N, T, H)`: N heads, T queries, H features.
        key: shape `(..., G, S, H)`; N is a multiple of G, and each key head serves N / G query heads.
        value: shape `(..., G, S, V)`.
        mask: boolean, broadcastable to `(..., N, T, S)`; False where a query must not look.
        bias: broadcastable to `(..., N, T, S)`, added to the scaled scores.
        scale: factor of the scores; None takes `1 / sqrt(H)`.
        dropout: function applied to the weights before they meet the values.
        context: linear function of the weights whose value, `(..., N, T, V)`, is added to the output.
        masked_score: what replaces masked scores. With minus infinity, a query that may look nowhere gets
            zeros; with `LOWEST_SCORE`, the mean of all values.
        return_weights: whether to return the weights (before dropout) too.

    Returns:
        Output `(..., N, T, V)`; with `return_weights`, also the weights `(..., N, T, S)`.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, section 3.2.1
    """
    dtype = keras.backend.standardize_dtype(value.dtype)
    half = dtype in ("float16", "bfloat16")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    # The scale goes on the queries: T x H products instead of T x S.
    scores = matmul_grouped(query * ops.cast(scale, query.dtype), ops.swapaxes(key, -1, -2))  # (..., N, T, S)
    if half:
        scores = ops.cast(scores, "float32")
    if bias is not None:
        scores = scores + ops.cast(bias, scores.dtype)

    def mix(weights: Any) -> Any:
        mixed = matmul_grouped(weights, value)  # (..., N, T, V)
        return mixed if context is None else mixed + context(weights)

    if bias is None and keras.backend.backend() != "jax":
        weights = ops.cast(kernel_softmax(scores, mask, masked_score), dtype)
        late = False
    else:
        if mask is not None:
            scores = ops.where(mask, scores, ops.cast(masked_score, scores.dtype))
        finite = bias is None and (mask is None or math.isfinite(masked_score))
        numerators, totals = exponentials(scores, finite=finite)  # (..., N, T, S), (..., N, T, 1)
        # Dividing the T x V outputs is cheaper than dividing the T x S weights; half precision has not
        # the range for sums of unnormalised weights.
        late = not (half or return_weights or dropout)
        weights = numerators if late else ops.cast(numerators / totals, dtype)
    if late:
        return mix(weights) / totals
    output = mix(weights if dropout is None else dropout(weights))
    return (output, weights) if return_weights else output


def matmul_grouped(x: Any, y: Any) -> Any:
    """`x (..., N, T, K) @ y (..., G, K, S) -> (..., N, T, S)`, head n of x meeting head n * G // N of y."""
    heads, groups = x.shape[-3] if len(x.shape) > 3 else 1, y.shape[-3] if len(y.shape) > 3 else 1
    if heads == groups:
        return ops.matmul(x, y)
    *batch, _, length, depth = ops.shape(x)
    # Heads that share keys become further rows of one product, so the keys are never repeated.
    folded = ops.reshape(x, (*batch, groups, heads // groups * length, depth))
    return ops.reshape(ops.matmul(folded, y), (*batch, heads, length, ops.shape(y)[-1]))


@keras.saving.register_keras_serializable(package="layers")
class Attention(keras.layers.Layer):
    """Dot-product attention over unprojected inputs, drop-in for `keras.layers.Attention`.

        weights = softmax(score(q, k)),   output = weights v
        score(q, k) = scale * q . k                        with score_mode="dot"
        score(q, k) = c * sum_d tanh(scale * (q_d + k_d))  with score_mode="concat"

    Args:
        use_scale: whether `scale` is a learned scalar (otherwise 1).
        score_mode: "dot" or "concat".
        dropout: fraction of the weights dropped in training.
        seed: integer seed of the dropout.

    Call arguments:
        inputs: list `[query, value]` or `[query, value, key]` of shapes `(batch, Tq, dim)`,
            `(batch, Tv, dim)`, `(batch, Tv, dim)`; without key, value is key as well.
        mask: list `[query_mask, value_mask]` of boolean `(batch, Tq)` and `(batch, Tv)`, either may be None.
            Outputs of masked queries are zero; masked values have no weight.
        return_attention_scores: whether to return the weights too.
        training: whether to drop weights.
        use_causal_mask: whether position i may look at positions up to i only.

    Returns:
        Output `(batch, Tq, dim)`; with `return_attention_scores`, also the weights `(batch, Tq, Tv)`.

    Reference:
        Luong et al., Effective Approaches to Attention-based Neural Machine Translation, 2015,
        https://arxiv.org/abs/1508.04025
    """

    score_modes = ("dot", "concat")

    def __init__(
        self,
        use_scale: bool = False,
        score_mode: str = "dot",
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if score_mode not in self.score_modes:
            raise ValueError(
                "Invalid value for argument score_mode. "
                f"Expected one of {{{', '.join(map(repr, self.score_modes))}}}. "
                f"Received: score_mode={score_mode}"
            )
        self.use_scale = use_scale
        self.score_mode = score_mode
        self.dropout = dropout
        self.seed = seed
        self._dropout_layer = Dropout(dropout, seed=seed, dtype=self.dtype_policy) if dropout > 0 else None

    def build(self, input_shape: list) -> None:
        """Makes the scalars `scale` and `concat_score_weight`, as far as they are used."""
        self._validate_inputs(input_shape)
        self.scale = None
        self.concat_score_weight = None
        if self.use_scale:
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        if self.score_mode == "concat":
            self.concat_score_weight = self.add_weight(
                name="concat_score_weight", shape=(), initializer="ones"
            )

    def _calculate_scores(self, query: Any, key: Any) -> Any:
        """Scores `(batch, Tq, Tv)` of every query with every key."""
        if self.score_mode == "dot":
            scores = ops.matmul(query, ops.swapaxes(key, -2, -1))  # (batch, Tq, Tv)
            return scores if self.scale is None else scores * self.scale
        pairs = ops.expand_dims(query, -2) + ops.expand_dims(key, -3)  # (batch, Tq, Tv, dim)
        if self.scale is not None:
            pairs = self.scale * pairs
        return self.concat_score_weight * ops.sum(ops.tanh(pairs), axis=-1)

    def _calculate_score_mask(self, scores: Any, v_mask: Any, use_causal_mask: bool) -> Any:
        """The value mask `(batch, 1, Tv)` and the causal mask `(1, Tq, Tv)` as one, or None."""
        mask = None if v_mask is None else ops.expand_dims(ops.cast(v_mask, "bool"), -2)
        if use_causal_mask:
            shape = ops.shape(scores)
            causal = ops.expand_dims(causal_mask(ops.arange(shape[-2]), ops.arange(shape[-1])), 0)
            mask = causal if mask is None else ops.logical_and(mask, causal)
        return mask

    def _apply_scores(
        self, scores: Any, value: Any, scores_mask: Any = None, training: bool = False
    ) -> tuple[Any, Any]:
        """Output `(batch, Tq, dim)` and weights `(batch, Tq, Tv)` from the scores."""
        dtype = scores.dtype
        scores = ops.cast(scores, keras.backend.result_type(dtype, "float32"))
        if scores_mask is not None:
            scores = ops.where(scores_mask, scores, LOWEST_SCORE)
        weights = ops.cast(softmax(scores), dtype)
        if self._dropout_layer is not None:
            weights = self._dropout_layer(weights, training=training)
        return ops.matmul(weights, value), weights

    def call(
        self,
        inputs: list,
        mask: list | None = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attends; see the class for arguments and shapes."""
        self._validate_inputs(inputs, mask)
        query, value = inputs[0], inputs[1]
        key = inputs[2] if len(inputs) > 2 else value
        query_mask, value_mask = (mask[0], mask[1]) if mask else (None, None)
        scores = self._calculate_scores(query=query, key=key)
        scores_mask = self._calculate_score_mask(scores, value_mask, use_causal_mask)
        output, weights = self._apply_scores(scores, value, scores_mask, training)
        if query_mask is not None:
            output = ops.where(ops.expand_dims(ops.cast(query_mask, "bool"), -1), output, 0)
        return (output, weights) if return_attention_scores else output

    def compute_mask(self, inputs: list, mask: list | None = None) -> Any:
        """The query's mask."""
        self._validate_inputs(inputs, mask)
        return None if mask is None or mask[0] is None else ops.convert_to_tensor(mask[0])

    def compute_output_shape(self, input_shape: list) -> tuple:
        """The query's shape with the value's last dimension."""
        return (*input_shape[0][:-1], input_shape[1][-1])

    def compute_output_spec(
        self,
        inputs: list,
        mask: list | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Symbolic output, and weights where they are returned."""
        self._validate_inputs(inputs, mask)
        query, value = inputs[0], inputs[1]
        output = keras.KerasTensor(
            self.compute_output_shape([query.shape, value.shape]), dtype=self.compute_dtype
        )
        if not return_attention_scores:
            return output
        return output, keras.KerasTensor((*query.shape[:-1], value.shape[-2]), dtype=self.compute_dtype)

    def _validate_inputs(self, inputs: Any, mask: Any = None) -> None:
        name = type(self).__name__
        if not isinstance(inputs, list):
            raise ValueError(
                f"{name} layer must be called on a list of inputs, namely [query, value] or "
                f"[query, value, key]. Received: inputs={inputs}."
            )
        if not 2 <= len(inputs) <= 3:
            raise ValueError(
                f"{name} layer accepts inputs list of length 2 or 3, namely [query, value] or "
                f"[query, value, key]. Received length: {len(inputs)}."
            )
        if mask is not None and not isinstance(mask, list):
            raise ValueError(
                f"{name} layer mask must be a list, namely [query_mask, value_mask]. Received: mask={mask}."
            )
        if mask is not None and not 2 <= len(mask) <= 3:
            raise ValueError(
                f"{name} layer accepts mask list of length 2 or 3. Received: inputs={inputs}, mask={mask}."
            )

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "use_scale": self.use_scale,
            "score_mode": self.score_mode,
            "dropout": self.dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="layers")
class AdditiveAttention(Attention):
    """Bahdanau's additive attention, drop-in for `keras.layers.AdditiveAttention`.

        score(q, k) = sum_d scale_d * tanh(q_d + k_d)

    With q = W s and k = U h from two Dense layers without bias, this is Bahdanau's `v^T tanh(W s + U h)`.

    Args:
        use_scale: whether `scale` is a learned vector (otherwise ones).
        dropout: fraction of the weights dropped in training.
        **kwargs: `seed`, and what every layer takes.

    Call arguments, Returns: as `Attention`.

    Reference:
        Bahdanau et al., Neural Machine Translation by Jointly Learning to Align and Translate, 2014,
        https://arxiv.org/abs/1409.0473
    """

    def __init__(self, use_scale: bool = True, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(use_scale=use_scale, dropout=dropout, **kwargs)

    def build(self, input_shape: list) -> None:
        """Makes `scale`, shape `(dim,)`."""
        self._validate_inputs(input_shape)
        self.scale = None
        if self.use_scale:
            self.scale = self.add_weight(
                name="scale", shape=(input_shape[0][-1],), initializer=twin("glorot_uniform")
            )

    def _calculate_scores(self, query: Any, key: Any) -> Any:
        pairs = ops.tanh(ops.expand_dims(query, -2) + ops.expand_dims(key, -3))  # (batch, Tq, Tv, dim)
        return ops.sum(pairs, axis=-1) if self.scale is None else ops.matmul(pairs, self.scale)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        config = super().get_config()
        del config["score_mode"]
        return config


@keras.saving.register_keras_serializable(package="layers")
class LuongAttention(Attention):
    """Luong's global attention with his three scores, weights learned.

        score(q, k) = q . k                    with score_mode="dot"
        score(q, k) = q . (W k)                with score_mode="general"
        score(q, k) = v . tanh(W [q; k])       with score_mode="concat"

    Args:
        score_mode: "dot", "general" or "concat".
        units: width of the hidden layer of "concat"; None takes the query's.
        dropout: fraction of the weights dropped in training.
        kernel_initializer: initializer of W and v.
        seed: integer seed of the dropout.

    Call arguments, Returns: as `Attention`; with "general" and "concat", keys may be of another width than
    queries.

    Reference:
        Luong et al., Effective Approaches to Attention-based Neural Machine Translation, 2015,
        https://arxiv.org/abs/1508.04025, equation 8
    """

    score_modes = ("dot", "general", "concat")

    def __init__(
        self,
        score_mode: str = "general",
        units: int | None = None,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(score_mode=score_mode, dropout=dropout, seed=seed, **kwargs)
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: list) -> None:
        """Makes `kernel` ("general": `(dim_k, dim_q)`; "concat": `(dim_q + dim_k, units)`) and `vector`."""
        self._validate_inputs(input_shape)
        query_dim, key_dim = input_shape[0][-1], input_shape[-1][-1]
        if self.score_mode == "general":
            self.kernel = self.add_weight(
                name="kernel", shape=(key_dim, query_dim), initializer=twin(self.kernel_initializer)
            )
        elif self.score_mode == "concat":
            self._query_dim = query_dim
            units = self.units or query_dim
            initializer = twin(self.kernel_initializer)
            self.kernel = self.add_weight(
                name="kernel", shape=(query_dim + key_dim, units), initializer=initializer
            )
            self.vector = self.add_weight(name="vector", shape=(units, 1), initializer=initializer)

    def _calculate_scores(self, query: Any, key: Any) -> Any:
        if self.score_mode == "concat":
            # W [q; k] = W_q q + W_k k: each half is applied once, not once for every pair.
            query = ops.matmul(query, self.kernel[: self._query_dim])  # (batch, Tq, units)
            key = ops.matmul(key, self.kernel[self._query_dim :])  # (batch, Tv, units)
            hidden = ops.tanh(ops.expand_dims(query, -2) + ops.expand_dims(key, -3))
            return ops.squeeze(ops.matmul(hidden, self.vector), -1)  # (batch, Tq, Tv)
        if self.score_mode == "general":
            key = ops.matmul(key, self.kernel)  # (batch, Tv, dim_q)
        return ops.matmul(query, ops.swapaxes(key, -2, -1))

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        config = super().get_config()
        del config["use_scale"]
        return {
            **config,
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
