"""Optimizers with their rules written out; arguments, defaults and variables are those of `keras.optimizers`.

Momentum is `SGD(momentum=0.9)`, Nesterov's `SGD(momentum=0.9, nesterov=True)`. Every optimizer takes
`weight_decay` (decoupled: the weights shrink by lr * weight_decay, whatever the gradient); an L2 penalty,
which goes through the gradient, is a regularizer of the layer. The two are one for plain SGD and differ for
every other rule.
"""

from layers.optimizers.adagrad import Adagrad
from layers.optimizers.adam import Adam, AdamW, Nadam
from layers.optimizers.clipping import clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from layers.optimizers.lion import Lion
from layers.optimizers.rmsprop import RMSprop
from layers.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "Nadam",
    "RMSprop",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "global_norm",
]
