"""Positions, which attention by itself does not see: six ways to tell it where tokens stand.

Added to the inputs of a model: `SinusoidalPosition`, `LearnedPosition`. Inside the attention, as its
`position` argument: `RotaryEmbedding` turns queries and keys, `ALiBi` and `RelativePositionBias` (T5) add to
the scores, `ShawRelativePosition` adds to the scores and to the outputs.

    MultiHeadAttention(8, 64, position=RotaryEmbedding())
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from .initializers import twin


def sinusoidal_encoding(positions: Any, depth: int, max_wavelength: float = 10000.0) -> Any:
    """Sine and cosine of every position at wavelengths from 2 pi to `max_wavelength` * 2 pi.

        P[t, 2i] = sin(t / L^(2i / depth)),   P[t, 2i + 1] = cos(t / L^(2i / depth))

    Args:
        positions: shape `(T,)`.
        depth: width of the encoding.
        max_wavelength: L.

    Returns:
        float32 tensor `(T, depth)`.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, section 3.5
    """
    frequencies = inverse_frequencies(2 * ((depth + 1) // 2), max_wavelength, exponent_of=depth)
    angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * frequencies  # (T, ceil(depth / 2))
    pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (T, ceil(depth / 2), 2)
    return ops.reshape(pairs, (-1, 2 * angles.shape[-1]))[:, :depth]


def inverse_frequencies(depth: int, max_wavelength: float, exponent_of: int | None = None) -> Any:
    """`L^(-2i / exponent_of)` for i up to `depth / 2`; by default over `depth` itself."""
    exponents = np.arange(0, depth, 2) / (exponent_of or depth)
    return ops.convert_to_tensor((max_wavelength**-exponents).astype("float32"))


def relative_positions(query_positions: Any, key_positions: Any) -> Any:
    """Position of every key as seen from every query, `(T, S)`: negative for the past."""
    return ops.expand_dims(key_positions, 0) - ops.expand_dims(query_positions, -1)


def relative_bucket(distance: Any, bidirectional: bool, num_buckets: int, max_distance: int) -> Any:
    """T5's buckets of relative positions: one each for near ones, logarithmically wider for far ones.

    Half of the buckets are exact; the other half divides the distances up to `max_distance` evenly on a
    logarithmic scale, and the last holds all beyond. With `bidirectional`, one set of half the size is for
    the past and one for the future; otherwise the future falls into bucket 0.

    Args:
        distance: integer tensor, key position minus query position.
        bidirectional: whether the future is told apart.
        num_buckets: number of buckets.
        max_distance: from where on distances share the last bucket.

    Returns:
        int32 tensor of the same shape, in `[0, num_buckets)`.

    Reference:
        Raffel et al., Exploring the Limits of Transfer Learning with T5, 2020,
        https://arxiv.org/abs/1910.10683, section 2.1
    """
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = ops.where(distance > 0, num_buckets, 0)
        past = ops.abs(distance)
    else:
        past = ops.maximum(-distance, 0)
    exact = num_buckets // 2
    # The maximum keeps the logarithm finite where the exact buckets are taken anyway.
    ratio = ops.cast(ops.maximum(past, exact), "float32") / exact
    logarithmic = ops.log(ratio) / math.log(max_distance / exact) * (num_buckets - exact)
    far = ops.minimum(exact + ops.cast(logarithmic, "int32"), num_buckets - 1)
    return offset + ops.where(past < exact, ops.cast(past, "int32"), far)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slope for every head: a geometric sequence from `2^(-8/n)` to `2^-8`, n heads.

    Where n is no power of two, the sequence for the next lower power, and then every other term of the
    sequence for twice that power, as the authors do.

    Args:
        num_heads: number of heads.

    Returns:
        float32 array `(num_heads,)`.

    Reference:
        Press et al., Train Short, Test Long, 2021, https://arxiv.org/abs/2108.12409, section 3
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: num_heads - power]]).astype("float32")


@keras.saving.register_keras_serializable(package="layers")
class SinusoidalPosition(keras.layers.Layer):
    """Adds fixed sine and cosine waves: `y[t] = x[t] + P[t]`, see `sinusoidal_encoding`.

    Args:
        max_wavelength: L, the longest wavelength over 2 pi.

    Call arguments:
        inputs: shape `(..., T, depth)`.
        start: position of the first of the T tokens.

    Returns:
        Tensor of the same shape.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, section 3.5
    """

    def __init__(self, max_wavelength: float = 10000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_wavelength = max_wavelength
        self.supports_masking = True

    def call(self, inputs: Any, start: Any = 0) -> Any:
        """Add the encoding."""
        positions = ops.arange(ops.shape(inputs)[-2], dtype="int32") + start
        encoding = sinusoidal_encoding(positions, inputs.shape[-1], self.max_wavelength)  # (T, depth)
        return inputs + ops.cast(encoding, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


@keras.saving.register_keras_serializable(package="layers")
class LearnedPosition(keras.layers.Layer):
    """Adds a learned vector for each position: `y[t] = x[t] + P[t]`.

    Args:
        max_length: number of positions that have a vector.
        initializer: initializer of P, `(max_length, depth)`.

    Call arguments:
        inputs: shape `(..., T, depth)`, T at most `max_length`.
        start: position of the first of the T tokens.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: if T is known and above `max_length`.

    Reference:
        Gehring et al., Convolutional Sequence to Sequence Learning, 2017, https://arxiv.org/abs/1705.03122
    """

    def __init__(self, max_length: int, initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_length = max_length
        self.initializer = keras.initializers.get(initializer)
        self.supports_masking = True

    def build(self, input_shape: tuple) -> None:
        """Make `embeddings`, `(max_length, depth)`."""
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.max_length, input_shape[-1]), initializer=twin(self.initializer)
        )

    def call(self, inputs: Any, start: Any = 0) -> Any:
        """Add the vectors."""
        length = inputs.shape[-2]
        if length is not None and length > self.max_length:
            raise ValueError(
                f"`LearnedPosition` has {self.max_length} positions, and the inputs are longer. "
                f"Received: inputs.shape={tuple(inputs.shape)}"
            )
        positions = ops.arange(ops.shape(inputs)[-2], dtype="int32") + start
        return inputs + ops.take(self.embeddings, positions, axis=0)  # (..., T, depth) + (T, depth)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "initializer": keras.initializers.serialize(self.initializer),
        }


class AttentionPosition(keras.layers.Layer):
    """What an encoding inside the attention may do, each by default nothing.

    A layer of its own as well: called on heads `(batch, N, T, H)`, it shows what it adds or changes there.
    """

    adds_context = False

    def rotate(self, heads: Any, positions: Any) -> Any:
        """Queries or keys `(batch, T, N, H)` at positions `(T,)`, changed; of the same shape."""
        return heads

    def bias(self, queries: Any, query_positions: Any, key_positions: Any) -> Any:
        """Added to the scores: broadcastable to `(batch, N, T, S)`, from queries `(batch, N, T, H)`."""
        return None

    def context(self, weights: Any, query_positions: Any, key_positions: Any) -> Any:
        """Added to the outputs if `adds_context`: `(batch, N, T, H)`, from weights `(batch, N, T, S)`."""
        return None


@keras.saving.register_keras_serializable(package="layers")
class RotaryEmbedding(AttentionPosition):
    """Turns queries and keys by angles proportional to their positions, so that q . k sees the difference.

        (x_i, x_{i + H/2}) -> (x_i cos - x_{i + H/2} sin,  x_i sin + x_{i + H/2} cos),   angle t / L^(2i / H)

    Features i and i + H/2 are a pair, as in GPT-NeoX and LLaMA; the paper pairs neighbours, which is the
    same up to the order of the features.

    Args:
        max_wavelength: L, the longest wavelength over 2 pi.

    Call arguments:
        inputs: shape `(batch, N, T, H)`, H even.
        start: position of the first of the T tokens.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: if H is odd.

    Reference:
        Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """

    def __init__(self, max_wavelength: float = 10000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_wavelength = max_wavelength

    def build(self, input_shape: tuple) -> None:
        """Check the width."""
        if input_shape[-1] % 2:
            raise ValueError(
                f"`RotaryEmbedding` turns pairs of features, so their number must be even. "
                f"Received: input_shape={tuple(input_shape)}"
            )

    def rotate(self, heads: Any, positions: Any) -> Any:
        """Turn heads `(batch, T, N, H)`."""
        frequencies = inverse_frequencies(heads.shape[-1], self.max_wavelength)  # (H / 2,)
        angles = ops.reshape(ops.cast(positions, "float32"), (-1, 1, 1)) * frequencies  # (T, 1, H / 2)
        cosine, sine = (ops.cast(wave, heads.dtype) for wave in (ops.cos(angles), ops.sin(angles)))
        first, second = ops.split(heads, 2, axis=-1)
        return ops.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)

    def call(self, inputs: Any, start: Any = 0) -> Any:
        """Turn heads `(batch, N, T, H)`."""
        positions = ops.arange(ops.shape(inputs)[-2], dtype="int32") + start
        return ops.swapaxes(self.rotate(ops.swapaxes(inputs, -2, -3), positions), -2, -3)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


class ScoreBias(AttentionPosition):
    """An encoding that adds to the scores; called on queries, it gives what it adds in self-attention."""

    def call(self, inputs: Any) -> Any:
        """The bias `(batch, N, T, T)` for queries `(batch, N, T, H)`."""
        shape = ops.shape(inputs)
        positions = ops.arange(shape[-2], dtype="int32")
        bias = self.bias(inputs, positions, positions)
        return ops.broadcast_to(bias, (*shape[:-1], shape[-2]))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """`(batch, N, T, T)`."""
        return (*input_shape[:-1], input_shape[-2])


@keras.saving.register_keras_serializable(package="layers")
class ALiBi(ScoreBias):
    """Lowers scores in proportion to distance: `bias = -slope_n |j - i|` for query i, key j, head n.

    There is nothing to learn, and sequences longer than those trained on work.

    Call arguments:
        inputs: queries `(batch, N, T, H)`.

    Returns:
        Bias `(batch, N, T, T)`.

    Reference:
        Press et al., Train Short, Test Long, 2021, https://arxiv.org/abs/2108.12409
    """

    def bias(self, queries: Any, query_positions: Any, key_positions: Any) -> Any:
        """The bias, `(N, T, S)`."""
        distance = ops.abs(relative_positions(query_positions, key_positions))  # (T, S)
        slopes = alibi_slopes(queries.shape[-3]).reshape(-1, 1, 1)
        # In float32 whatever the policy: far positions differ by less than half precision resolves.
        return -ops.convert_to_tensor(slopes) * ops.cast(distance, "float32")

    def call(self, inputs: Any) -> Any:
        """The bias `(batch, N, T, T)` for queries `(batch, N, T, H)`."""
        return ops.cast(super().call(inputs), self.compute_dtype)


@keras.saving.register_keras_serializable(package="layers")
class RelativePositionBias(ScoreBias):
    """T5's learned bias: one number for each head and bucket of relative positions.

        bias = b[bucket(j - i), n]   for query i, key j, head n; see `relative_bucket`

    T5 shares one such layer among the attention layers of a stack: give all of them the same object.

    Args:
        num_buckets: number of buckets.
        max_distance: from where on distances share the last bucket.
        bidirectional: whether the future is told apart; False for causal attention.
        initializer: initializer of b, `(num_buckets, N)`.

    Call arguments:
        inputs: queries `(batch, N, T, H)`.

    Returns:
        Bias `(batch, N, T, T)`.

    Reference:
        Raffel et al., Exploring the Limits of Transfer Learning with T5, 2020,
        https://arxiv.org/abs/1910.10683, section 2.1
    """

    def __init__(
        self,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        smallest = 4 if bidirectional else 2
        if num_buckets < smallest or (bidirectional and num_buckets % 2) or max_distance <= num_buckets // 2:
            raise ValueError(
                f"`num_buckets` must be at least {smallest}{', even' if bidirectional else ''}, and less "
                f"than twice `max_distance`. Received: num_buckets={num_buckets}, max_distance={max_distance}"
            )
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: tuple) -> None:
        """Make `embeddings`, `(num_buckets, N)`."""
        if self.built:
            return  # shared among attention layers, each of which builds it
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.num_buckets, input_shape[-3]), initializer=twin(self.initializer)
        )

    def bias(self, queries: Any, query_positions: Any, key_positions: Any) -> Any:
        """The bias, `(N, T, S)`."""
        distance = relative_positions(query_positions, key_positions)  # (T, S)
        buckets = relative_bucket(distance, self.bidirectional, self.num_buckets, self.max_distance)
        return ops.transpose(ops.take(self.embeddings, buckets, axis=0), (2, 0, 1))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable(package="layers")
class ShawRelativePosition(ScoreBias):
    """Shaw's relative positions: a learned key and a learned value for each clipped distance.

        score = q_i . (k_j + a^K[clip(j - i)]) / sqrt(H),   output_i = sum_j w_ij (v_j + a^V[clip(j - i)])

    with clip to [-max_distance, max_distance]. The vectors are shared by the heads.

    Args:
        max_distance: the largest distance that has a vector of its own.
        initializer: initializer of a^K and a^V, each `(2 max_distance + 1, H)`.

    Call arguments:
        inputs: queries `(batch, N, T, H)`.

    Returns:
        What the scores of self-attention gain, `(batch, N, T, T)`.

    Reference:
        Shaw et al., Self-Attention with Relative Position Representations, 2018,
        https://arxiv.org/abs/1803.02155
    """

    adds_context = True

    def __init__(self, max_distance: int = 16, initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_distance = max_distance
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: tuple) -> None:
        """Make `key_embeddings` and `value_embeddings`, `(2 max_distance + 1, H)`."""
        if self.built:
            return
        self.key_embeddings, self.value_embeddings = (
            self.add_weight(
                name=f"{role}_embeddings",
                shape=(2 * self.max_distance + 1, input_shape[-1]),
                initializer=twin(type(self.initializer).from_config(self.initializer.get_config())),
            )
            for role in ("key", "value")
        )

    def _vectors(self, embeddings: Any, query_positions: Any, key_positions: Any) -> Any:
        """The vector of every pair, `(T, S, H)`."""
        distance = relative_positions(query_positions, key_positions)  # (T, S)
        clipped = ops.clip(distance, -self.max_distance, self.max_distance) + self.max_distance
        return ops.take(embeddings, clipped, axis=0)

    def bias(self, queries: Any, query_positions: Any, key_positions: Any) -> Any:
        """The keys' part of the scores, `(batch, N, T, S)`."""
        vectors = self._vectors(self.key_embeddings, query_positions, key_positions)
        scores = by_query(queries, ops.swapaxes(vectors, -1, -2))
        return scores * ops.cast(1 / math.sqrt(queries.shape[-1]), scores.dtype)

    def context(self, weights: Any, query_positions: Any, key_positions: Any) -> Any:
        """The values' part of the outputs, `(batch, N, T, H)`."""
        return by_query(weights, self._vectors(self.value_embeddings, query_positions, key_positions))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "max_distance": self.max_distance,
            "initializer": keras.initializers.serialize(self.initializer),
        }


def by_query(x: Any, matrices: Any) -> Any:
    """Each query's rows by its own matrix: `(batch, N, T, K), (T, K, S) -> (batch, N, T, S)`.

    One product per query for all examples and heads at once, so that the (T, K, S) matrices are not copied
    for each of them (section 3.3 of Shaw's paper).
    """
    batch, heads, length, depth = ops.shape(x)
    rows = ops.reshape(ops.transpose(x, (2, 0, 1, 3)), (length, batch * heads, depth))
    products = ops.matmul(rows, matrices)  # (T, batch * N, S)
    products = ops.reshape(products, (length, batch, heads, ops.shape(matrices)[-1]))
    return ops.transpose(products, (1, 2, 0, 3))
