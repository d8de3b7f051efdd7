"""Sampling from Gaussians so that gradients pass, and the divergences that come with it."""

from typing import Any

import keras
from keras import ops


def sample_gaussian(mean: Any, log_variance: Any, seed: Any = None) -> Any:
    """The reparameterisation trick: `z = mean + exp(log_variance / 2) * eps`, `eps ~ N(0, I)`.

    The randomness is in eps alone, so z has gradients by mean and log-variance.

    Args:
        mean: any shape.
        log_variance: the same shape.
        seed: integer, or `keras.random.SeedGenerator`; None draws from Keras' global state.

    Returns:
        Tensor of the same shape.

    Reference:
        Kingma & Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114, section 2.4
    """
    noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=seed)
    return mean + ops.exp(0.5 * log_variance) * noise


def kl_to_standard_normal(mean: Any, log_variance: Any, axis: int | tuple | None = -1) -> Any:
    """Divergence of a diagonal Gaussian from the standard normal, summed over `axis`.

        KL(N(m, s^2) || N(0, 1)) = 1/2 (m^2 + s^2 - 1 - log s^2)

    Args:
        mean: m, any shape.
        log_variance: log s^2, the same shape.
        axis: the axis or axes of the latent dimensions; None sums over all.

    Returns:
        Tensor without those axes, in nats.

    Reference:
        Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, appendix B
    """
    # expm1: near log s^2 = 0 the difference exp(log s^2) - 1 would lose all digits.
    return 0.5 * ops.sum(ops.square(mean) + ops.expm1(log_variance) - log_variance, axis=axis)


def kl_between_gaussians(
    mean: Any,
    log_variance: Any,
    other_mean: Any,
    other_log_variance: Any,
    axis: int | tuple | None = -1,
) -> Any:
    """Divergence between two diagonal Gaussians, summed over `axis`.

        KL(N(m, s^2) || N(n, t^2)) = 1/2 ((m - n)^2 / t^2 + s^2 / t^2 - 1 - log(s^2 / t^2))

    Args:
        mean: m, any shape.
        log_variance: log s^2, the same shape.
        other_mean: n, broadcastable to the shape of m.
        other_log_variance: log t^2, likewise.
        axis: the axis or axes of the latent dimensions; None sums over all.

    Returns:
        Tensor without those axes, in nats.
    """
    log_ratio = log_variance - other_log_variance
    distance = ops.square(mean - other_mean) * ops.exp(-other_log_variance)
    return 0.5 * ops.sum(distance + ops.expm1(log_ratio) - log_ratio, axis=axis)


@keras.saving.register_keras_serializable(package="layers")
class GaussianSampling(keras.layers.Layer):
    """Draws from the Gaussian that an encoder describes; see `sample_gaussian`.

        z = mean + exp(log_variance / 2) * eps,   eps ~ N(0, I)

    It samples in training and inference alike; where the mean is wanted, take the mean.

    Args:
        kl_weight: if above 0, `kl_weight` times the divergence from the standard normal, averaged over the
            batch, is added to the model's losses: the beta of a beta-VAE.
        seed: integer seed.

    Call arguments:
        inputs: list `[mean, log_variance]`, each of shape `(batch, ..., latent)`.

    Returns:
        Tensor `(batch, ..., latent)`.

    Reference:
        Kingma & Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114;
        Higgins et al., beta-VAE, 2017, https://openreview.net/forum?id=Sy2fzU9gl
    """

    def __init__(self, kl_weight: float = 0.0, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if kl_weight < 0:
            raise ValueError(f"`kl_weight` must not be negative. Received: kl_weight={kl_weight}")
        self.kl_weight = kl_weight
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: list) -> None:
        """Check that mean and log-variance have one shape."""
        if len(input_shape) != 2 or tuple(input_shape[0]) != tuple(input_shape[1]):
            raise ValueError(
                "`GaussianSampling` must be called on a list [mean, log_variance] of tensors of one shape. "
                f"Received: input_shape={input_shape}"
            )

    def call(self, inputs: list) -> Any:
        """Draw."""
        mean, log_variance = inputs
        if self.kl_weight:
            latent_axes = tuple(range(1, len(mean.shape)))
            self.add_loss(self.kl_weight * ops.mean(kl_to_standard_normal(mean, log_variance, latent_axes)))
        return sample_gaussian(mean, log_variance, self.seed_generator)

    def compute_output_shape(self, input_shape: list) -> tuple:
        """The shape of the mean."""
        return tuple(input_shape[0])

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "kl_weight": self.kl_weight, "seed": self.seed}
