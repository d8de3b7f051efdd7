"""Losses: a function of (y_true, y_pred) that gives one value a sample, and its class for `model.compile`.

The classes are drop-in for those of the same name in `keras.losses`: arguments, names, reductions, sample
weights and masks (the last three come with the abstract base `keras.losses.Loss`). Configs hold every
argument; Keras leaves out Huber's delta and the sparse cross-entropy's axis, which are then lost on reload.

Cross-entropies from logits never form a probability: log-softmax and softplus keep the tails. Given
probabilities, they clip to [epsilon, 1 - epsilon], `keras.config.epsilon()`.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import keras
from keras import ops

# Keras has no public name for it; it knows where to put the mask of a JAX tensor, which takes no attributes.
from keras.src.backend import set_keras_mask

from layers.activations import log_softmax, sigmoid, softmax, softplus


def mean_squared_error(y_true: Any, y_pred: Any) -> Any:
    """mean((y_true - y_pred)^2) over the last axis: (batch, ..., d) -> (batch, ...)."""
    y_true, y_pred = _of_one_rank(*_as_tensors(y_true, y_pred))
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


def mean_absolute_error(y_true: Any, y_pred: Any) -> Any:
    """mean(|y_true - y_pred|) over the last axis: (batch, ..., d) -> (batch, ...)."""
    y_true, y_pred = _of_one_rank(*_as_tensors(y_true, y_pred))
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Any:
    """mean(e^2 / 2 where |e| <= delta, else delta |e| - delta^2 / 2), e = y_pred - y_true (Huber 1964)."""
    y_true, y_pred = _of_one_rank(*_as_tensors(y_true, y_pred))
    error = ops.abs(y_pred - y_true)
    # With q = min(|e|, delta) both branches are q * (|e| - q / 2).
    quadratic = ops.where(error <= delta, error, delta)
    return ops.mean(quadratic * (error - 0.5 * quadratic), axis=-1)


def hinge(y_true: Any, y_pred: Any) -> Any:
    """mean(max(1 - y_true * y_pred, 0)) over the last axis; labels -1 and 1, or 0 and 1."""
    return ops.mean(_margin(*_as_tensors(y_true, y_pred)), axis=-1)


def squared_hinge(y_true: Any, y_pred: Any) -> Any:
    """mean(max(1 - y_true * y_pred, 0)^2) over the last axis; labels -1 and 1, or 0 and 1."""
    return ops.mean(ops.square(_margin(*_as_tensors(y_true, y_pred))), axis=-1)


def categorical_hinge(y_true: Any, y_pred: Any) -> Any:
    """max(1 + max(score of a wrong class) - score of the right class, 0); y_true one-hot on the last axis."""
    y_true, y_pred = _as_tensors(y_true, y_pred)
    right = ops.sum(y_true * y_pred, axis=-1)
    wrong = ops.max((1.0 - y_true) * y_pred, axis=-1)
    return _positive_part(wrong - right + 1.0)


def kl_divergence(y_true: Any, y_pred: Any) -> Any:
    """sum(y_true * log(y_true / y_pred)) over the last axis, both clipped to [epsilon, 1]."""
    y_true, y_pred = _as_tensors(y_true, y_pred)
    y_true = ops.clip(y_true, keras.config.epsilon(), 1.0)
    y_pred = ops.clip(y_pred, keras.config.epsilon(), 1.0)
    return ops.sum(y_true * ops.log(y_true / y_pred), axis=-1)


def binary_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """mean(-y log p - (1 - y) log(1 - p)) over the axis; from logits x, (1 - y) x + softplus(-x).

    Args:
        y_true: labels in [0, 1], of y_pred's shape.
        y_pred: probabilities, or logits.
        from_logits: what y_pred is.
        label_smoothing: s; labels become y (1 - s) + s / 2.
        axis: the axis averaged over.

    Returns:
        Tensor of y_pred's shape without the axis.

    Raises:
        ValueError: if the shapes differ.
    """
    y_true, y_pred = _as_tensors(y_true, y_pred)
    _check_same_shape(y_true, y_pred)
    y_true = _smooth_binary(y_true, label_smoothing)
    return ops.mean(_binary_terms(y_true, y_pred, from_logits), axis=axis)


def binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """mean(w * (1 - p_t)^gamma * cross-entropy) over the axis, p_t the probability given to the label.

    Args:
        y_true: labels in [0, 1], of y_pred's shape.
        y_pred: probabilities, or logits.
        apply_class_balancing: weigh label 1 by w = alpha and label 0 by w = 1 - alpha.
        alpha: that weight.
        gamma: how much a well-classified sample is discounted; 0 gives the cross-entropy.
        from_logits: what y_pred is.
        label_smoothing: s; labels become y (1 - s) + s / 2.
        axis: the axis averaged over.

    Returns:
        Tensor of y_pred's shape without the axis.

    Reference:
        Lin et al. 2017, "Focal loss for dense object detection".
    """
    y_true, y_pred = _as_tensors(y_true, y_pred)
    _check_same_shape(y_true, y_pred)
    y_true = _smooth_binary(y_true, label_smoothing)
    probability = sigmoid(y_pred) if from_logits else y_pred
    right = y_true * probability + (1.0 - y_true) * (1.0 - probability)
    loss = ops.power(1.0 - right, gamma) * _binary_terms(y_true, y_pred, from_logits)
    if apply_class_balancing:
        loss = loss * (y_true * alpha + (1.0 - y_true) * (1.0 - alpha))
    return ops.mean(loss, axis=axis)


def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """-sum(y_true * log p) over the class axis.

    Args:
        y_true: one-hot or soft labels, of y_pred's shape.
        y_pred: probabilities (rescaled to sum 1), or logits.
        from_logits: what y_pred is.
        label_smoothing: s; labels become y (1 - s) + s / classes.
        axis: the class axis.

    Returns:
        Tensor of y_pred's shape without the class axis.

    Raises:
        ValueError: if the shapes differ or the axis is a bool.
    """
    y_true, y_pred = _labels_for_classes(y_true, y_pred, label_smoothing, axis, "categorical_crossentropy")
    return -ops.sum(y_true * _log_probability(y_pred, from_logits, axis), axis=axis)


def categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """-sum(alpha * (1 - p)^gamma * y_true * log p) over the class axis (Lin et al. 2017).

    Args:
        y_true: one-hot or soft labels, of y_pred's shape.
        y_pred: probabilities (rescaled to sum 1), or logits.
        alpha: factor of the loss, or one factor a class.
        gamma: how much a well-classified sample is discounted; 0 gives alpha times the cross-entropy.
        from_logits: what y_pred is.
        label_smoothing: s; labels become y (1 - s) + s / classes.
        axis: the class axis.

    Returns:
        Tensor of y_pred's shape without the class axis.

    Raises:
        ValueError: if the shapes differ or the axis is a bool.
    """
    name = "categorical_focal_crossentropy"
    y_true, y_pred = _labels_for_classes(y_true, y_pred, label_smoothing, axis, name)
    probability = _clipped_probability(softmax(y_pred, axis=axis) if from_logits else y_pred, axis)
    focus = ops.convert_to_tensor(alpha, probability.dtype) * ops.power(1.0 - probability, gamma)
    return -ops.sum(focus * y_true * ops.log(probability), axis=axis)


def sparse_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> Any:
    """-log p[y_true] along the class axis.

    Args:
        y_true: class numbers, y_pred's shape without the class axis (or with 1 there). A number that is no
            class costs NaN; as in Keras, all of them cost 0 on JAX, and -100 does on PyTorch.
        y_pred: probabilities (rescaled to sum 1), or logits.
        from_logits: what y_pred is.
        ignore_class: samples of this class cost 0 and are masked: they do not count in the mean either.
        axis: the class axis.

    Returns:
        Tensor of y_pred's shape without the class axis.

    Raises:
        ValueError: if the shapes do not fit.
    """
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[axis] == 1:
        y_true = ops.squeeze(y_true, axis=axis)
    _check_sparse_shapes(y_true.shape, y_pred.shape, axis)
    y_true = ops.cast(y_true, "int32")
    counted = None
    if ignore_class is not None:
        counted = ops.not_equal(y_true, ignore_class)
        # Any valid class will do: the sample's loss is replaced below.
        y_true = ops.where(counted, y_true, 0)
    log_p = _log_probability(y_pred, from_logits, axis)
    picked = ops.take_along_axis(log_p, ops.expand_dims(y_true, axis), axis=axis)
    loss = -ops.squeeze(picked, axis=axis)
    is_class = ops.logical_and(y_true >= 0, y_true < ops.shape(y_pred)[axis])
    loss = ops.where(is_class, loss, _cost_of_no_class(y_true))
    if counted is not None:
        loss = ops.where(counted, loss, 0.0)
        set_keras_mask(loss, counted)  # `keras.losses.Loss` then leaves these samples out of the mean
    return loss


def _as_tensors(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Return both as tensors of y_pred's dtype."""
    y_pred = ops.convert_to_tensor(y_pred)
    return ops.convert_to_tensor(y_true, dtype=y_pred.dtype), y_pred


def _of_one_rank(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Return tensors of one rank: (batch,) beside (batch, 1) becomes equal."""
    true_rank, pred_rank = len(y_true.shape), len(y_pred.shape)
    if true_rank == pred_rank + 1 and y_true.shape[-1] == 1:
        return (y_true, ops.expand_dims(y_pred, -1)) if pred_rank == 1 else (ops.squeeze(y_true, -1), y_pred)
    if pred_rank == true_rank + 1 and y_pred.shape[-1] == 1:
        return (ops.expand_dims(y_true, -1), y_pred) if true_rank == 1 else (y_true, ops.squeeze(y_pred, -1))
    return y_true, y_pred


def _check_same_shape(y_true: Any, y_pred: Any) -> None:
    if len(y_true.shape) != len(y_pred.shape) or any(
        a is not None and b is not None and a != b for a, b in zip(y_true.shape, y_pred.shape, strict=True)
    ):
        raise ValueError(
            "Arguments `target` and `output` must have the same shape. "
            f"Received: target.shape={y_true.shape}, output.shape={y_pred.shape}"
        )


def _positive_part(x: Any) -> Any:
    return ops.where(x <= 0, 0.0, x)


def _margin(y_true: Any, y_pred: Any) -> Any:
    """Return max(1 - y_true * y_pred, 0), with labels 0 and 1 read as -1 and 1."""
    binary = ops.all(ops.logical_or(ops.equal(y_true, 0), ops.equal(y_true, 1)))
    return _positive_part(1.0 - ops.where(binary, 2.0 * y_true - 1.0, y_true) * y_pred)


def _smooth_binary(y_true: Any, smoothing: float) -> Any:
    return y_true * (1.0 - smoothing) + 0.5 * smoothing if smoothing else y_true


def _binary_terms(y_true: Any, y_pred: Any, from_logits: bool) -> Any:
    """Return the cross-entropy of each element."""
    if from_logits:
        return (1.0 - y_true) * y_pred + softplus(-y_pred)
    epsilon = keras.config.epsilon()
    p = ops.clip(y_pred, epsilon, 1.0 - epsilon)
    return -(y_true * ops.log(p) + (1.0 - y_true) * ops.log(1.0 - p))


def _labels_for_classes(y_true: Any, y_pred: Any, smoothing: float, axis: int, name: str) -> tuple[Any, Any]:
    """Check labels and predictions over classes; return them with the labels cast and smoothed."""
    if isinstance(axis, bool):
        raise ValueError(f"`axis` must be of type `int`. Received: axis={axis} of type {type(axis)}")
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.cast(y_true, y_pred.dtype)
    _check_same_shape(y_true, y_pred)
    if y_pred.shape[axis] == 1:
        warnings.warn(
            f"In loss {name}, expected y_pred.shape to be (batch_size, num_classes) with num_classes > 1. "
            f"Received: y_pred.shape={y_pred.shape}. "
            "Consider using 'binary_crossentropy' if you only have 2 classes.",
            SyntaxWarning,
            stacklevel=3,
        )
    if smoothing:
        y_true = y_true * (1.0 - smoothing) + smoothing / y_pred.shape[axis]
    return y_true, y_pred


def _check_sparse_shapes(true_shape: tuple, pred_shape: tuple, axis: int) -> None:
    if len(pred_shape) < 1:
        raise ValueError(f"Argument `output` must be at least rank 1. Received: output.shape={pred_shape}")
    expected = list(pred_shape)
    del expected[axis]
    if len(expected) != len(true_shape) or any(
        a is not None and b is not None and a != b for a, b in zip(true_shape, expected, strict=True)
    ):
        raise ValueError(
            "Arguments `target` and `output` must have the same shape but for the class axis: "
            f"target.shape={tuple(true_shape)}, output.shape={tuple(pred_shape)}"
        )


def _cost_of_no_class(y_true: Any) -> Any:
    """Return what a label costs that is no class: 0 where Keras' backend says so, else what nobody misses."""
    if keras.config.backend() == "jax":
        return 0.0
    # PyTorch's number for samples to leave out.
    return (
        ops.where(ops.equal(y_true, -100), 0.0, math.nan) if keras.config.backend() == "torch" else math.nan
    )


def _clipped_probability(y_pred: Any, axis: int) -> Any:
    """Return y_pred rescaled to sum 1 along the axis and kept away from 0 and 1."""
    epsilon = keras.config.epsilon()
    return ops.clip(y_pred / ops.sum(y_pred, axis=axis, keepdims=True), epsilon, 1.0 - epsilon)


def _log_probability(y_pred: Any, from_logits: bool, axis: int) -> Any:
    return log_softmax(y_pred, axis=axis) if from_logits else ops.log(_clipped_probability(y_pred, axis))


class _FunctionLoss(keras.losses.Loss):
    """A loss class made of a function; the settings are the function's keyword arguments.

    Every class below takes, after its settings, `reduction` ("sum_over_batch_size", "mean", "sum",
    "mean_with_sample_weight", "none" or None), `name` and `dtype` as in Keras.
    """

    fn: ClassVar[Callable]

    def __init__(self, reduction: str | None, name: str | None, dtype: Any, **settings: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._fn_kwargs = settings
        for key, value in settings.items():
            setattr(self, key, value)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return one value a sample."""
        return self.fn(*_of_one_rank(y_true, y_pred), **self._fn_kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), **self._fn_kwargs}


@keras.saving.register_keras_serializable(package="layers")
class MeanSquaredError(_FunctionLoss):
    """Mean squared error: see `mean_squared_error`."""

    fn = staticmethod(mean_squared_error)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_squared_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)


@keras.saving.register_keras_serializable(package="layers")
class MeanAbsoluteError(_FunctionLoss):
    """Mean absolute error: see `mean_absolute_error`."""

    fn = staticmethod(mean_absolute_error)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_absolute_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)


@keras.saving.register_keras_serializable(package="layers")
class Huber(_FunctionLoss):
    """Huber's loss: quadratic up to delta, linear beyond: see `huber`."""

    fn = staticmethod(huber)

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "huber_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, delta=delta)


@keras.saving.register_keras_serializable(package="layers")
class Hinge(_FunctionLoss):
    """Hinge loss, for labels -1 and 1 (or 0 and 1): see `hinge`."""

    fn = staticmethod(hinge)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)


@keras.saving.register_keras_serializable(package="layers")
class SquaredHinge(_FunctionLoss):
    """Squared hinge loss, for labels -1 and 1 (or 0 and 1): see `squared_hinge`."""

    fn = staticmethod(squared_hinge)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "squared_hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)


@keras.saving.register_keras_serializable(package="layers")
class CategoricalHinge(_FunctionLoss):
    """Hinge loss over classes, for one-hot labels: see `categorical_hinge`."""

    fn = staticmethod(categorical_hinge)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)


@keras.saving.register_keras_serializable(package="layers")
class KLDivergence(_FunctionLoss):
    """Kullback-Leibler divergence of the prediction from the label: see `kl_divergence`."""

    fn = staticmethod(kl_divergence)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "kl_divergence",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)


@keras.saving.register_keras_serializable(package="layers")
class BinaryCrossentropy(_FunctionLoss):
    """Cross-entropy of yes-or-no labels: see `binary_crossentropy`."""

    fn = staticmethod(binary_crossentropy)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis
        )


@keras.saving.register_keras_serializable(package="layers")
class BinaryFocalCrossentropy(_FunctionLoss):
    """Cross-entropy of yes-or-no labels that discounts easy samples: see `binary_focal_crossentropy`."""

    fn = staticmethod(binary_focal_crossentropy)

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction,
            name,
            dtype,
            apply_class_balancing=apply_class_balancing,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


@keras.saving.register_keras_serializable(package="layers")
class CategoricalCrossentropy(_FunctionLoss):
    """Cross-entropy of one-hot or soft labels: see `categorical_crossentropy`."""

    fn = staticmethod(categorical_crossentropy)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis
        )


@keras.saving.register_keras_serializable(package="layers")
class CategoricalFocalCrossentropy(_FunctionLoss):
    """Cross-entropy of one-hot labels that discounts easy samples: see `categorical_focal_crossentropy`."""

    fn = staticmethod(categorical_focal_crossentropy)

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction,
            name,
            dtype,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


@keras.saving.register_keras_serializable(package="layers")
class SparseCategoricalCrossentropy(_FunctionLoss):
    """Cross-entropy of class numbers: see `sparse_categorical_crossentropy`."""

    fn = staticmethod(sparse_categorical_crossentropy)

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction, name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis
        )
