"""Training step and peak memory of our attention and embedding layers against Keras' built-in ones.

    python -m benchmarks.attention                              # one table a backend
    python -m benchmarks.attention --backends torch --threads 2

How a step is measured: see `benchmarks.interleaved`. Sizes are those of a small language model (batch 16, 256
tokens, 256 features, 8 heads) and of a long context (batch 4, 1024 tokens); embeddings are of its tokens in a
vocabulary of 10,000. Figures and what was tried and not kept: `results/layers/attention.md`.
"""

from benchmarks.interleaved import main
from benchmarks.layer_step import LayerStep

SHORT, LONG = (16, 256, 256), (4, 1024, 256)
CAUSAL = {"use_causal_mask": True}

CASES = {
    "MultiHeadAttention short": LayerStep(lambda m: m.MultiHeadAttention(8, 32), (SHORT, SHORT)),
    "MultiHeadAttention long": LayerStep(lambda m: m.MultiHeadAttention(8, 32), (LONG, LONG)),
    "MultiHeadAttention causal": LayerStep(lambda m: m.MultiHeadAttention(8, 32), (SHORT, SHORT), CAUSAL),
    "MultiHeadAttention dropout": LayerStep(
        lambda m: m.MultiHeadAttention(8, 32, dropout=0.1), (SHORT, SHORT), {"training": True}
    ),
    "Embedding": LayerStep(lambda m: m.Embedding(10_000, 256), (16, 256), integers=10_000),
}

if __name__ == "__main__":
    main(__spec__.name)
