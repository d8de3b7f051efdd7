"""Multi-head attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layers.autograd import ops
from layers.autograd.nn.dense import Dropout
from layers.autograd.nn.module import Module
from layers.autograd.tensor import Tensor, as_array, as_tensor


class MultiHeadAttention(Module):
    """Attention(Q, K, V) = softmax(Q K^T / sqrt(key_dim)) V in several heads, whose results are mixed.

    Args:
        num_heads: number of heads H.
        key_dim: length K of queries and keys in a head.
        value_dim: length V of values in a head (default key_dim).
        dropout: rate on the attention weights.
        use_bias: add a bias in the projections.
        rng: random generator or seed.
        dtype: type of the weights.

    Call arguments:
        query: (N, T, D).
        value: (N, S, D').
        key: (N, S, D''), by default the value.
        attention_mask: Boolean, broadcast to (N, H, T, S); False forbids. A mask (N, T, S) gets its head
            axis.
        use_causal_mask: forbid every place after the query's own.
        return_attention_scores: return the weights (N, H, T, S) as well.

    Returns:
        (N, T, D).

    Reference: Vaswani et al., "Attention Is All You Need", 2017.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        rng: np.random.Generator | int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(rng, dtype)
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim or key_dim
        self.use_bias = use_bias
        self.dropout = Dropout(dropout, self.rng)
        self.query = self.key = self.value = self.output = None

    def __call__(self, query: Any, value: Any, key: Any = None, **kwargs: Any) -> Any:
        """Build for the three widths on the first call, then compute."""
        query, value = as_tensor(query), as_tensor(value)
        key = value if key is None else as_tensor(key)
        if query.ndim != 3 or value.ndim != 3 or key.shape[:2] != value.shape[:2]:
            raise ValueError(
                "MultiHeadAttention: expected query (N, T, D), value and key (N, S, D), got "
                f"{query.shape}, {value.shape} and {key.shape}"
            )
        if not self.built:
            heads = (self.num_heads, self.key_dim)
            self.query = self._projection(query.shape[-1], heads, "query")
            self.key = self._projection(key.shape[-1], heads, "key")
            self.value = self._projection(value.shape[-1], (self.num_heads, self.value_dim), "value")
            width = query.shape[-1]
            self.output = [
                self.add_weight("output/kernel", (*heads[:1], self.value_dim, width), "glorot_uniform")
            ]
            if self.use_bias:
                self.output.append(self.add_weight("output/bias", (width,), "zeros"))
            self.built = True
        return self.call(query, value, key, **kwargs)

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor,
        attention_mask: Any = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
        training: bool = False,
    ) -> Any:
        """Project, attend in every head, mix."""
        q, k, v = _project(query, self.query), _project(key, self.key), _project(value, self.value)
        scores = q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(self.key_dim))  # (N, H, T, S)
        allowed = _allowed(attention_mask, use_causal_mask, scores.shape)
        if allowed is not None:
            scores = ops.where(allowed, scores, np.asarray(-1e9, scores.dtype))
        weights = ops.softmax(scores)  # (N, H, T, S)
        context = self.dropout(weights, training=training) @ v  # (N, H, T, V)
        joined = context.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1)  # (N, T, H V)
        kernel = self.output[0]
        result = joined @ kernel.reshape(-1, kernel.shape[-1])  # (N, T, D)
        result = result + self.output[1] if self.use_bias else result
        return (result, weights) if return_attention_scores else result

    def _projection(self, width: int, heads: tuple[int, int], name: str) -> list[Tensor]:
        weights = [self.add_weight(f"{name}/kernel", (width, *heads), "glorot_uniform")]
        if self.use_bias:
            weights.append(self.add_weight(f"{name}/bias", heads, "zeros"))
        return weights


def _project(x: Tensor, weights: list[Tensor]) -> Tensor:
    """(N, S, D) to (N, H, S, K)."""
    kernel = weights[0]  # (D, H, K)
    y = (x @ kernel.reshape(kernel.shape[0], -1)).reshape(*x.shape[:2], *kernel.shape[1:])  # (N, S, H, K)
    y = y if len(weights) == 1 else y + weights[1]
    return y.transpose(0, 2, 1, 3)


def _allowed(mask: Any, causal: bool, shape: tuple[int, ...]) -> np.ndarray | None:
    """Where attention may go, Boolean and broadcastable to (N, H, T, S); None for everywhere."""
    allowed = None
    if mask is not None:
        allowed = as_array(mask).astype(bool)
        allowed = allowed[:, None] if allowed.ndim == 3 else allowed
    if causal:
        earlier = np.tril(np.ones(shape[2:], bool))
        allowed = earlier if allowed is None else allowed & earlier
    return allowed
