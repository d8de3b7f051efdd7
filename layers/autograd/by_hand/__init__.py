"""Layers without a graph: every forward keeps what its backward needs, and every backward was derived on
paper.

Each function works on NumPy arrays. `<name>_forward` returns (output, kept), `<name>_backward` takes the
gradient with respect to the output and what was kept. The docstring of each backward holds its derivation;
the tests hold the result against the recorded gradients of `layers.autograd.nn`.

Notation: L is the loss, and d* stands for the gradient of L with respect to *.
"""

from layers.autograd.by_hand.activations import gelu_backward, gelu_forward, relu_backward, relu_forward
from layers.autograd.by_hand.convolution import (
    conv2d_backward,
    conv2d_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from layers.autograd.by_hand.dense import dense_backward, dense_forward
from layers.autograd.by_hand.losses import softmax_crossentropy_backward, softmax_crossentropy_forward
from layers.autograd.by_hand.normalization import (
    batch_norm_backward,
    batch_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from layers.autograd.by_hand.recurrent import (
    gru_step_backward,
    gru_step_forward,
    lstm_step_backward,
    lstm_step_forward,
    rnn_step_backward,
    rnn_step_forward,
)

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "conv2d_backward",
    "conv2d_forward",
    "dense_backward",
    "dense_forward",
    "gelu_backward",
    "gelu_forward",
    "gru_step_backward",
    "gru_step_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "relu_backward",
    "relu_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "softmax_crossentropy_backward",
    "softmax_crossentropy_forward",
]
