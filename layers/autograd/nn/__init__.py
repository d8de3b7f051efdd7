"""Layers, initializers and losses on tensors, with the arguments, defaults and weight order of Keras."""

from layers.autograd.nn import initializers, losses
from layers.autograd.nn.attention import MultiHeadAttention
from layers.autograd.nn.convolution import AveragePooling2D, Conv2D, MaxPooling2D
from layers.autograd.nn.dense import Activation, Dense, Dropout, Embedding, Flatten
from layers.autograd.nn.module import Module, Parameter, Sequential
from layers.autograd.nn.normalization import BatchNormalization, GroupNormalization, LayerNormalization
from layers.autograd.nn.recurrent import GRU, LSTM, SimpleRNN

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNormalization",
    "LayerNormalization",
    "MaxPooling2D",
    "Module",
    "MultiHeadAttention",
    "Parameter",
    "Sequential",
    "SimpleRNN",
    "initializers",
    "losses",
]
