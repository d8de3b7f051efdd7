"""Every layer and every optimizer against Keras' of the same name: training step and peak memory.

    python -m benchmarks.layers                                 # one table a backend
    python -m benchmarks.layers --threads 2 --no-memory
    python -m benchmarks.layers --backends torch --layers Conv2D "LSTM (64, 100, 64)" "Adam step"

How it is measured: see `benchmarks.interleaved`. The cases, and the reasons for their sizes, are those of
`benchmarks.recurrent`, `attention`, `feedforward` and `optimizers`, each of which is a command too. Figures
and what was tried and not kept: `results/layers/`.
"""

from benchmarks import attention, feedforward, optimizers, recurrent
from benchmarks.interleaved import main

CASES = {**recurrent.CASES, **attention.CASES, **feedforward.CASES, **optimizers.CASES}

if __name__ == "__main__":
    main(__spec__.name)
