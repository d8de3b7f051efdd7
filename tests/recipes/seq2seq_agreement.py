"""Every kind of translator's logits, loss and gradients on one backend, written to a file.

KERAS_BACKEND=torch python tests/recipes/seq2seq_agreement.py FILE.npz
"""

import sys

import keras
import numpy as np

from recipes import seq2seq_multi30k as recipe
from recipes.engine import gradients
from recipes.engine.data import translation

KINDS = [
    {"attention": "none", "cell": "lstm"},
    {"attention": "luong-dot"},
    {"attention": "luong-general", "sampling": 0.5},
    {"attention": "bahdanau", "cell": "lstm"},
]


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    examples = [
        tuple(rng.integers(4, 9, length).tolist() for length in lengths)
        for lengths in ((3, 5), (6, 2), (4, 4))
    ]
    x, y = translation.padded(examples)
    results = {}
    for kind in KINDS:
        config = recipe.Config(backend=keras.backend.backend(), embedding=6, units=8, dropout=0.0, **kind)
        x[:, 2] = 0
        x[:, 2, [2, 4]] = config.sampling > 0
        model = recipe.Translator(config, 9, 9)
        model.build((None, 3, None))
        model.set_weights([rng.normal(size=v.shape).astype("float32") / 2 for v in model.weights])
        apply, loss_of = gradients.functional(model), recipe.loss_of(config)

        def loss(trainable, others):
            logits, _ = apply(trainable, others, keras.ops.convert_to_tensor(x), training=True)
            return loss_of(keras.ops.convert_to_tensor(y), logits), logits

        (value, logits), slopes = gradients.value_and_grad(loss, has_aux=True)(*gradients.variables_of(model))
        name = kind["attention"]
        results[f"{name} logits"] = keras.ops.convert_to_numpy(keras.ops.stop_gradient(logits))
        results[f"{name} loss"] = keras.ops.convert_to_numpy(value)
        results[f"{name} gradient"] = np.concatenate(
            [np.ravel(keras.ops.convert_to_numpy(g)) for g in slopes]
        )
    np.savez(path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
