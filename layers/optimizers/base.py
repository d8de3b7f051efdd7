"""What every optimizer here shares: an update rule written once, applied fast on each backend.

`keras.optimizers.Optimizer`, the abstract base, keeps the variables and the learning rate and does averaging
of the weights, gradient accumulation and loss scaling. Clipping and weight decay are done here. An optimizer
adds `state_of`, `coefficients` and `rule`; its arithmetic is all in the last two.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from layers.optimizers.arithmetic import scaled
from layers.optimizers.clipping import clip_by_global_norm, clip_by_norm, clip_by_value

# Elements updated at a time on torch's CPU: the block of a weight, its gradient and its moments stays in the
# last cache through the whole rule, instead of every operation of it streaming all of them from memory.
BLOCK = 1 << 20


class _StepMemo:
    """Values that depend on the step alone, kept while that step runs."""

    def __init__(self) -> None:
        self.open = False
        self.values: dict[Any, tuple] = {}


class Optimizer(keras.optimizers.Optimizer):
    """An optimizer given by an elementwise rule.

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        base_options, base_arguments: weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema,
            ema_momentum, ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps, name: as in
            Keras, by position in this order or by keyword.
    """

    def __init__(self, learning_rate: Any, *base_options: Any, **base_arguments: Any) -> None:
        super().__init__(learning_rate, *base_options, **base_arguments)
        self._memo = _StepMemo()

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return the optimizer's variables that belong to this model variable."""
        raise NotImplementedError

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return the rule's scalars of this step (what depends on the learning rate and the step number)."""
        raise NotImplementedError

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, *state).

        A weight is only added to, by `arithmetic`: on TensorFlow it is a variable. State may be written with
        `+=`, `*=`, ... too: on torch these work in place and save temporaries, on JAX and TensorFlow, where
        tensors are values, they make new ones. The gradient is the caller's and is never written to.
        """
        raise NotImplementedError

    def apply(self, grads: Sequence, trainable_variables: Sequence | None = None) -> Any:
        """Update the variables; TensorFlow's sparse gradients are made dense first."""
        grads = list(grads)
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if len(grads) == len(variables):  # else the base has an error to raise
            grads = [_dense(gradient, variable) for gradient, variable in zip(grads, variables, strict=True)]
        return super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Apply the rule to one model variable and its state."""
        # Eager torch pays for every look-up, a variable at a time: its own dtype is at hand, the name is not.
        value = variable.value if keras.config.backend() == "torch" else None
        dtype = variable.dtype if value is None else value.dtype
        if value is None or getattr(gradient, "dtype", None) != dtype:
            gradient = ops.convert_to_tensor(gradient, dtype=keras.utils.standardize_dtype(dtype))
        decay, coefficients = self._coefficients_once(learning_rate, dtype)
        decays = decay is not None and self._use_weight_decay(variable)
        stored = (variable, *self.state_of(variable))
        if value is not None and value is variable._value:
            # Detached tensors share the variables' memory: writing to them updates the variables.
            values = [each._value.detach() for each in stored]
            for slope, weight, *state in _blocks([gradient.detach(), *values]):
                if decays:
                    weight = scaled(weight, decay)
                new_values = self.rule(coefficients, weight, slope, *state)
                for old, new in zip((weight, *state), new_values, strict=True):
                    if new is not old:
                        old[...] = new
        else:
            weight, *state = _own_weight(variable), *(_own_value(each) for each in stored[1:])
            if decays:
                weight = scaled(weight, decay)
            new_weight, *new_state = self.rule(coefficients, weight, gradient, *state)
            for each, new in zip(stored[1:], new_state, strict=True):
                self.assign(each, new)
            if keras.config.backend() != "tensorflow":  # where `arithmetic` has changed the variable itself
                self.assign(variable, new_weight)

    def _coefficients_once(self, learning_rate: Any, backend_dtype: Any) -> tuple:
        """Return (decay or None, coefficients), computed once a step however many variables there are."""
        if backend_dtype in self._memo.values:
            return self._memo.values[backend_dtype]
        dtype = keras.utils.standardize_dtype(backend_dtype)
        # Powers of 0.999 need float32: in bfloat16 the number itself is 1.
        precise = "float64" if dtype == "float64" else "float32"
        learning_rate = ops.cast(learning_rate, precise)
        decay = None
        if self.weight_decay is not None:
            decay = _scalar(ops.cast(1.0 - learning_rate * self.weight_decay, dtype))
        coefficients = self.coefficients(learning_rate, precise)
        coefficients = tuple(_scalar(ops.cast(each, dtype)) for each in coefficients)
        if self._memo.open:
            self._memo.values[backend_dtype] = decay, coefficients
        return decay, coefficients

    def _backend_update_step(
        self, grads: Sequence, trainable_variables: Sequence, learning_rate: Any
    ) -> None:
        self._memo.open = True
        try:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        finally:
            self._memo.open = False
            self._memo.values.clear()

    def _get_current_learning_rate(self) -> Any:
        """Follow a schedule by updates; Keras would by gradients, of which accumulation needs several."""
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _update_model_variables_moving_average(self, trainable_variables: Sequence) -> None:
        """Average the weights once an update; Keras would do it once a gradient that is accumulated."""
        steps = self.gradient_accumulation_steps
        if not steps or not self.use_ema:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        updated = ops.equal((self._iterations + 1) % steps, 0)
        first = ops.equal(self.iterations, 0)
        for variable, average in zip(trainable_variables, self._model_variables_moving_average, strict=True):
            momentum = ops.where(updated, ops.where(first, 0.0, self.ema_momentum), 1.0)
            momentum = ops.cast(momentum, variable.dtype)
            average.assign(momentum * average + (1 - momentum) * variable)

    def _apply_weight_decay(self, variables: Sequence) -> None:
        """Do nothing: `update_step` decays each weight just before its rule, in the same pass over memory."""

    def _clip_gradients(self, grads: Sequence) -> Sequence:
        if self.clipnorm and self.clipnorm > 0:  # a limit that is not positive is none, as in Keras
            return [clip_by_norm(g, self.clipnorm) if g is not None else None for g in grads]
        if self.global_clipnorm and self.global_clipnorm > 0:
            return clip_by_global_norm(grads, self.global_clipnorm)
        if self.clipvalue and self.clipvalue > 0:
            return [clip_by_value(g, self.clipvalue) if g is not None else None for g in grads]
        return grads


def _dense(gradient: Any, variable: keras.Variable) -> Any:
    """Return a gradient as a tensor: TensorFlow gives those of embeddings row by row."""
    if not hasattr(gradient, "dense_shape"):
        return gradient
    return ops.add(gradient, ops.zeros(variable.shape, dtype=gradient.dtype))


def _scalar(value: Any) -> Any:
    """Return a scalar tensor as a number where that needs no waiting and makes torch faster: on its CPU."""
    return float(value) if keras.config.backend() == "torch" and value.device.type == "cpu" else value


def _own_weight(variable: Any) -> Any:
    """Return what a rule updates: on TensorFlow the variable, in place, else a tensor."""
    if keras.config.backend() != "tensorflow":
        return _own_value(variable)
    return variable.value if isinstance(variable, keras.Variable) else variable


def _own_value(variable: Any) -> Any:
    """Return the variable's value as a tensor that is ours to change."""
    if keras.config.backend() == "jax":
        return ops.convert_to_tensor(variable)  # immutable: there is nothing to protect
    # TensorFlow would give the variable itself, torch (within a StatelessScope only) the caller's tensor.
    return ops.copy(variable)


def _blocks(tensors: Sequence) -> Iterator[Sequence]:
    """Yield views of tensors of one shape, a cache-sized block of each at a time."""
    first = tensors[0]
    # Two tensors, a weight and its gradient, are met once by a rule: nothing is gained by keeping them near.
    if len(tensors) == 2 or first.numel() <= BLOCK or first.device.type != "cpu" or first.ndim == 0:
        yield tensors
        return
    if first.ndim > 2 and all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.reshape(-1, first.shape[-1]) for tensor in tensors]
    rows = tensors[0].shape[0]
    step = max(1, BLOCK * rows // math.prod(first.shape))
    for start in range(0, rows, step):
        yield [tensor[start : start + step] for tensor in tensors]
