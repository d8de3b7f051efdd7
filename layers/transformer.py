"""The blocks of a transformer: attention and a feed-forward network, each in a residual branch.

    x = x + branch(norm(x))    pre-norm (norm_first=True), which trains without warm-up
    x = norm(x + branch(x))    post-norm, as in the original paper

A stack of pre-norm blocks wants one more normalization after the last block.
"""

from collections.abc import Callable
from typing import Any

import keras

from .dense import Dense
from .multi_head_attention import GroupedQueryAttention, HeadedAttention, MultiHeadAttention
from .normalization import LayerNormalization, RMSNormalization
from .quantization import QuantizableParts
from .regularization import Dropout

# Shazeer, GLU Variants Improve Transformer, 2020: what is applied to one of two linear maps.
GATES = {"glu": "sigmoid", "bilinear": "linear", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}

NORMALIZATIONS = {"layer": LayerNormalization, "rms": RMSNormalization}


@keras.saving.register_keras_serializable(package="layers")
class FeedForward(QuantizableParts, keras.layers.Layer):
    """The network that acts on each position by itself, as wide at its end as at its start.

        y = dropout(activation(x W_1 + b_1)) W_2 + b_2              with an activation
        y = dropout(activation(x W_1 + b_1) * (x V + c)) W_2 + b_2  with a gated one

    Args:
        hidden_dim: width in between.
        activation: name or function; or a gated unit: "glu" (sigmoid), "bilinear" (none), "reglu" (ReLU),
            "geglu" (GELU), "swiglu" (Swish). A gated unit has three matrices: at 2/3 of the hidden width it
            has as many weights as a plain one.
        dropout: fraction of the hidden units dropped in training.
        use_bias: whether the linear maps have a bias.
        kernel_initializer: initializer of the matrices.
        seed: integer seed of the dropout.

    Call arguments:
        inputs: shape `(..., dim)`.
        training: whether to drop.

    Returns:
        Tensor of the same shape.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, section 3.3;
        Shazeer, GLU Variants Improve Transformer, 2020, https://arxiv.org/abs/2002.05202
    """

    def __init__(
        self,
        hidden_dim: int,
        activation: Any = "relu",
        dropout: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.gated = isinstance(activation, str) and activation in GATES
        self.activation_name = activation
        self.activation = keras.activations.get(GATES[activation] if self.gated else activation)
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.supports_masking = True
        self.drop = Dropout(dropout, seed=seed, dtype=self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        """Make the linear maps."""
        self.hidden = self._dense(self.hidden_dim, "hidden", input_shape)
        if self.gated:
            self.gate = self._dense(self.hidden_dim, "gate", input_shape)
        self.output_dense = self._dense(input_shape[-1], "output", (*input_shape[:-1], self.hidden_dim))

    def _dense(self, units: int, name: str, input_shape: tuple) -> Dense:
        initializer = self.kernel_initializer
        layer = Dense(
            units,
            use_bias=self.use_bias,
            # One of its own: a shared initializer would repeat its numbers.
            kernel_initializer=type(initializer).from_config(initializer.get_config()),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(input_shape)
        return layer

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the network."""
        hidden = self.activation(self.hidden(inputs))  # (..., hidden_dim)
        if self.gated:
            hidden = hidden * self.gate(inputs)
        return self.output_dense(self.drop(hidden, training=training))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": (
                self.activation_name if self.gated else keras.activations.serialize(self.activation)
            ),
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }


class TransformerBlock(QuantizableParts, keras.layers.Layer):
    """What encoder and decoder blocks share: their arguments, and the residual branch."""

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        key_dim: int | None = None,
        num_key_value_heads: int | None = None,
        activation: Any = "relu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        normalization: str = "layer",
        norm_first: bool = True,
        epsilon: float = 1e-5,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        position: keras.layers.Layer | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be one of {sorted(NORMALIZATIONS)}. "
                f"Received: normalization={normalization}"
            )
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.key_dim = key_dim
        self.num_key_value_heads = num_key_value_heads
        self.activation = activation
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.normalization = normalization
        self.norm_first = norm_first
        self.epsilon = epsilon
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.position = position
        self.seed = seed
        self.supports_masking = True
        self.drop = Dropout(dropout, seed=seed, dtype=self.dtype_policy)

    def _make_attention(self, name: str, dim: int, position: keras.layers.Layer | None) -> HeadedAttention:
        if self.key_dim is None and dim % self.num_heads:
            raise ValueError(
                f"Give `key_dim` where `num_heads` does not divide the width of the inputs. "
                f"Received: num_heads={self.num_heads}, width {dim}"
            )
        key_dim = self.key_dim or dim // self.num_heads
        common = {
            "dropout": self.attention_dropout,
            "use_bias": self.use_bias,
            "kernel_initializer": self.kernel_initializer,
            "position": position,
            "seed": self.seed,
            "dtype": self.dtype_policy,
            "name": name,
        }
        if self.num_key_value_heads is None:
            return MultiHeadAttention(self.num_heads, key_dim, **common)
        return GroupedQueryAttention(key_dim, self.num_heads, self.num_key_value_heads, **common)

    def _make_norm(self, name: str, input_shape: tuple) -> keras.layers.Layer:
        norm = NORMALIZATIONS[self.normalization](epsilon=self.epsilon, dtype=self.dtype_policy, name=name)
        norm.supports_masking = True  # Keras' RMSNormalization, and so ours, would drop it
        norm.build(input_shape)
        return norm

    def _make_feed_forward(self, input_shape: tuple) -> FeedForward:
        layer = FeedForward(
            self.hidden_dim,
            self.activation,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        layer.build(input_shape)
        return layer

    def _residual(self, x: Any, norm: Callable, branch: Callable, training: bool | None) -> Any:
        """One residual branch, normalized before or after."""
        if self.norm_first:
            return x + self.drop(branch(norm(x)), training=training)
        return norm(x + self.drop(branch(x), training=training))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "key_dim": self.key_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "activation": (
                self.activation
                if isinstance(self.activation, str)
                else keras.activations.serialize(self.activation)
            ),
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "normalization": self.normalization,
            "norm_first": self.norm_first,
            "epsilon": self.epsilon,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "position": keras.saving.serialize_keras_object(self.position),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict) -> "TransformerBlock":
        """The block that `get_config` describes."""
        position = keras.saving.deserialize_keras_object(config["position"])
        return cls(**{**config, "position": position})


@keras.saving.register_keras_serializable(package="layers")
class TransformerEncoderBlock(TransformerBlock):
    """Self-attention over all positions, then a feed-forward network.

        x = x + attention(norm(x));   x = x + feed_forward(norm(x))      (pre-norm)

    Args:
        num_heads: number of heads.
        hidden_dim: hidden width of the feed-forward network.
        key_dim: width of a head; None takes the inputs' over `num_heads`.
        num_key_value_heads: if given, grouped-query attention with so many key heads.
        activation: of the feed-forward network, gated units included; see `FeedForward`.
        dropout: fraction dropped at the end of each branch in training.
        attention_dropout: fraction of the attention weights dropped in training.
        normalization: "layer" or "rms".
        norm_first: pre-norm or post-norm.
        epsilon: of the normalization.
        use_bias: whether the linear maps have a bias.
        kernel_initializer: of the linear maps.
        position: an encoding of `layers.positional` for the self-attention.
        seed: integer seed of the dropouts.

    Call arguments:
        inputs: shape `(batch, T, dim)`.
        mask: boolean `(batch, T)`, False for padding; taken from the inputs' Keras mask when not given.
        attention_mask: boolean, broadcastable to `(batch, T, T)`; True where a query may look.
        use_causal_mask: whether a position may look only at those that do not come after it.
        training: whether to drop.

    Returns:
        Tensor `(batch, T, dim)`.

    Raises:
        ValueError: for an unknown normalization, or a width that `num_heads` does not divide.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762;
        Xiong et al., On Layer Normalization in the Transformer Architecture, 2020,
        https://arxiv.org/abs/2002.04745
    """

    def build(self, input_shape: tuple) -> None:
        """Make attention, network and normalizations."""
        self.attention = self._make_attention("attention", input_shape[-1], self.position)
        self.attention.build(input_shape, input_shape)
        self.attention_norm = self._make_norm("attention_norm", input_shape)
        self.feed_forward = self._make_feed_forward(input_shape)
        self.feed_forward_norm = self._make_norm("feed_forward_norm", input_shape)

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        inputs_mask: Any = None,
        attention_mask: Any = None,
        use_causal_mask: bool = False,
        training: bool | None = None,
    ) -> Any:
        """Apply the block."""
        # Keras fills `mask` in if inputs are the only tensor, `inputs_mask` if there is an attention mask.
        mask = inputs_mask if mask is None else mask

        def attend(x: Any) -> Any:
            return self.attention(
                x,
                x,
                value_mask=mask,
                attention_mask=attention_mask,
                use_causal_mask=use_causal_mask,
                training=training,
            )

        def transform(x: Any) -> Any:
            return self.feed_forward(x, training=training)

        x = self._residual(inputs, self.attention_norm, attend, training)  # (batch, T, dim)
        return self._residual(x, self.feed_forward_norm, transform, training)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape


@keras.saving.register_keras_serializable(package="layers")
class TransformerDecoderBlock(TransformerBlock):
    """Causal self-attention, attention to an encoder's output if there is one, a feed-forward network.

        x = x + self_attention(norm(x));   x = x + cross_attention(norm(x), memory)
        x = x + feed_forward(norm(x))      (pre-norm)

    Args:
        num_heads, hidden_dim: as in `TransformerEncoderBlock`.
        cross_attention: whether there is an encoder; False for a decoder alone, as in GPT.
        **kwargs: the further arguments of `TransformerEncoderBlock`; the position is for the self-attention.

    Call arguments:
        inputs: shape `(batch, T, dim)`.
        memory: the encoder's output, `(batch, S, memory_dim)`; left out without cross-attention.
        mask, memory_mask: boolean `(batch, T)` and `(batch, S)`, False for padding; taken from the Keras
            masks when not given.
        training: whether to drop.
        cache: keys and values of the tokens so far, from `empty_cache` or the last call.
        cache_update_index: integer position of the first of the T tokens.
        memory_cache: `block.cross_attention_layer.project_source(memory)`, to project the memory once only.

    Returns:
        Tensor `(batch, T, dim)`; with `cache`, a tuple of it and the new cache.

    Raises:
        ValueError: if there is a memory and no cross-attention, or the reverse.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762
    """

    def __init__(self, num_heads: int, hidden_dim: int, cross_attention: bool = True, **kwargs: Any):
        super().__init__(num_heads, hidden_dim, **kwargs)
        self.cross_attention = cross_attention

    def build(self, inputs_shape: tuple, memory_shape: tuple | None = None) -> None:
        """Make both attentions, network and normalizations."""
        if self.cross_attention != (memory_shape is not None):
            raise ValueError(
                "A decoder block takes a `memory` if and only if it was made with `cross_attention`. "
                f"Received: cross_attention={self.cross_attention}, memory_shape={memory_shape}"
            )
        dim = inputs_shape[-1]
        self.self_attention_layer = self._make_attention("self_attention", dim, self.position)
        self.self_attention_layer.build(inputs_shape, inputs_shape)
        self.self_attention_norm = self._make_norm("self_attention_norm", inputs_shape)
        if self.cross_attention:
            self.cross_attention_layer = self._make_attention("cross_attention", dim, None)
            self.cross_attention_layer.build(inputs_shape, memory_shape)
            self.cross_attention_norm = self._make_norm("cross_attention_norm", inputs_shape)
        self.feed_forward = self._make_feed_forward(inputs_shape)
        self.feed_forward_norm = self._make_norm("feed_forward_norm", inputs_shape)

    def empty_cache(self, batch_size: int, length: int) -> tuple:
        """A cache of the self-attention for `length` tokens."""
        return self.self_attention_layer.empty_cache(batch_size, length)

    def call(
        self,
        inputs: Any,
        memory: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
        memory_mask: Any = None,
        training: bool | None = None,
        cache: tuple | None = None,
        cache_update_index: Any = None,
        memory_cache: tuple | None = None,
    ) -> Any:
        """Apply the block."""
        mask = inputs_mask if mask is None else mask
        has_memory = memory is not None or memory_cache is not None
        if has_memory != self.cross_attention:
            raise ValueError(
                "A decoder block takes a `memory` if and only if it was made with `cross_attention`. "
                f"Received: cross_attention={self.cross_attention}, "
                f"memory={'given' if has_memory else None}"
            )
        new_cache = None

        def attend(x: Any) -> Any:
            nonlocal new_cache
            results = self.self_attention_layer(
                x,
                x,
                value_mask=mask,
                use_causal_mask=True,
                training=training,
                cache=cache,
                cache_update_index=cache_update_index,
            )
            if cache is None:
                return results
            outputs, new_cache = results
            return outputs

        def attend_to_memory(x: Any) -> Any:
            return self.cross_attention_layer(
                x,
                x if memory is None else memory,
                value_mask=memory_mask,
                training=training,
                cache=memory_cache,
            )

        def transform(x: Any) -> Any:
            return self.feed_forward(x, training=training)

        x = self._residual(inputs, self.self_attention_norm, attend, training)  # (batch, T, dim)
        if self.cross_attention:
            x = self._residual(x, self.cross_attention_norm, attend_to_memory, training)
        x = self._residual(x, self.feed_forward_norm, transform, training)
        return x if new_cache is None else (x, new_cache)

    def compute_output_shape(self, inputs_shape: tuple, memory_shape: tuple | None = None) -> tuple:
        """The inputs' shape."""
        return inputs_shape

    def compute_output_spec(
        self,
        inputs: Any,
        memory: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
        memory_mask: Any = None,
        training: bool | None = None,
        cache: tuple | None = None,
        cache_update_index: Any = None,
        memory_cache: tuple | None = None,
    ) -> Any:
        """Symbolic outputs, and the cache where there is one."""
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        return outputs if cache is None else (outputs, cache)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "cross_attention": self.cross_attention}
