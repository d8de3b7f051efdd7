"""The compound steps of update rules, one pass over memory each.

`x` is the rule's own (a weight or its state). On torch it is a tensor that is overwritten and returned, by
the fused operation that torch's tensors have for the step. On TensorFlow a weight is its variable, which is
added to in place and returned: a program that XLA does not compile would write the sum elsewhere first. All
else is a value, and the compiler does the fusing. A scale is a number or a scalar tensor of x's dtype.
"""

from typing import Any

import keras


def scaled(x: Any, scale: Any) -> Any:
    """Return scale * x."""
    if _is_variable(x):
        x.assign(scale * x, read_value=False)
        return x
    x *= scale
    return x


def add(x: Any, y: Any) -> Any:
    """Return x + y."""
    if _is_variable(x):
        x.assign_add(y, read_value=False)
        return x
    x += y
    return x


def add_scaled(x: Any, scale: Any, y: Any) -> Any:
    """Return x + scale * y."""
    if keras.config.backend() != "torch":
        return add(x, scale * y)
    # A scalar tensor stays on its device; as `alpha` it would have to be waited for.
    return x.add_(y, alpha=scale) if isinstance(scale, float) else x.addcmul_(y, scale)


def add_square(x: Any, scale: float, y: Any) -> Any:
    """Return x + scale * y^2."""
    return add(x, scale * (y * y)) if keras.config.backend() != "torch" else x.addcmul_(y, y, value=scale)


def move_towards(x: Any, y: Any, fraction: float) -> Any:
    """Return x + fraction * (y - x), the next exponential mean of y with decay 1 - fraction."""
    return add(x, fraction * (y - x)) if keras.config.backend() != "torch" else x.lerp_(y, fraction)


def _is_variable(x: Any) -> bool:
    return keras.config.backend() == "tensorflow" and hasattr(x, "assign_add")
