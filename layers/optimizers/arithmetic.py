"""The compound steps of update rules, one pass over memory each.

`x` is the rule's own tensor (a weight or its state): on torch it is overwritten and returned, by the fused
operation that torch's tensors have for the step; on JAX and TensorFlow the compiler does the fusing. A scale
is a number or a scalar tensor of x's dtype.
"""

from typing import Any

import keras


def add_scaled(x: Any, scale: Any, y: Any) -> Any:
    """Return x + scale * y."""
    if keras.config.backend() != "torch":
        return x + scale * y
    # A scalar tensor stays on its device; as `alpha` it would have to be waited for.
    return x.add_(y, alpha=scale) if isinstance(scale, float) else x.addcmul_(y, scale)


def add_square(x: Any, scale: float, y: Any) -> Any:
    """Return x + scale * y^2."""
    return x + scale * (y * y) if keras.config.backend() != "torch" else x.addcmul_(y, y, value=scale)


def move_towards(x: Any, y: Any, fraction: float) -> Any:
    """Return x + fraction * (y - x), the next exponential mean of y with decay 1 - fraction."""
    return x + fraction * (y - x) if keras.config.backend() != "torch" else x.lerp_(y, fraction)
