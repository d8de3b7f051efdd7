"""Recurrent cells and layers: the cells' equations, the loop over time, and backpropagation through it."""

from layers.recurrent.bidirectional import Bidirectional
from layers.recurrent.cells import GRUCell, LSTMCell, PeepholeLSTMCell, SimpleRNNCell, StackedRNNCells
from layers.recurrent.layers import GRU, LSTM, RNN, PeepholeLSTM, SimpleRNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "SimpleRNN",
    "SimpleRNNCell",
    "StackedRNNCells",
]
