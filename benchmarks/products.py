"""Products with a matrix, ours against `keras.layers.Dense` without bias: training step by size.

    python -m benchmarks.products --backends torch --no-memory

How a step is measured: see `benchmarks.interleaved`. The two differ on PyTorch, where ours go by oneDNN from
a size on (`layers/onednn.py`). The sizes are (rows, inputs) to outputs: a recurrent step's, those of a
transformer's projections, and some just below and above the smallest and the narrowest that go by oneDNN.
"""

from benchmarks.interleaved import main
from benchmarks.layer_step import LayerStep

SIZES = (
    (64, 256, 128),
    (64, 256, 192),
    (64, 256, 1024),
    (16, 256, 1024),
    (128, 784, 64),
    (4096, 256, 256),
    (4096, 256, 1024),
    (4096, 64, 32),
    (4096, 256, 48),
    (512, 1024, 1024),
)


def case(rows: int, inputs: int, outputs: int) -> LayerStep:
    """One line of the table."""
    return LayerStep(lambda module: module.Dense(outputs, use_bias=False), (rows, inputs))


CASES = {f"({rows}, {inputs}) to {outputs}": case(rows, inputs, outputs) for rows, inputs, outputs in SIZES}

if __name__ == "__main__":
    main(__spec__.name)
