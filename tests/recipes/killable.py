"""A short run with everything on that could go astray in a resume; its final state goes to a file.

    python -m tests.recipes.killable FILE.npz --tracking-uri ... [--resume RUN]

The backend is KERAS_BACKEND. It prints `training` once it trains, so that a test knows when to kill it.
"""

import dataclasses
import os
import sys

import keras
import numpy as np

import layers
from recipes import engine
from recipes.engine import launch, recorder
from recipes.engine.config import TrainingConfig, check_words

CONFIG = {
    "epochs": 4,
    "batch_size": 64,
    "accumulate": 2,
    "ema": 0.9,
    "clip_norm": 1.0,
    "checkpoint_every": "7",
}


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """As in a recipe."""

    VALUES = TrainingConfig.VALUES | {"out"}

    dataset: str = "digits"
    out: str = ""


def build_model() -> keras.Model:
    """Batch statistics and two kinds of random numbers: all that a network can carry along."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            layers.BatchNormalization(),
            layers.GaussianNoise(0.1),
            layers.Dense(32, activation="tanh"),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """A recipe's `train`, short of figures."""
    data = engine.data.load(config.dataset)
    scaled = {
        name: dataclasses.replace(split, x=(split.x / 16).astype("float32"))
        for name, split in (("train", data.train), ("validation", data.validation))
    }
    batches = engine.data.Batches(
        scaled["train"], config.batch_size, config.seed, "crop_flip", config.accumulate
    )
    model = build_model()
    schedule = layers.schedules.CosineDecay(
        0.01, batches.steps_per_epoch // config.accumulate * config.epochs
    )
    optimizer = layers.optimizers.AdamW(schedule, **engine.training.optimizer_options(config))
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print("training", flush=True)
    last = engine.training.fit(model, batches, scaled["validation"], config, run, schedule)
    if config.out:
        np.savez(config.out, **state(model))
    return {"val/accuracy": last["val/accuracy"]}


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """All that training changed."""
    measured = {id(variable) for variable in model.metrics_variables}
    variables = [*(v for v in model.variables if id(v) not in measured), *model.optimizer.variables]
    return {f"{i}": np.array(keras.ops.convert_to_numpy(v)) for i, v in enumerate(variables)}


if __name__ == "__main__":
    out, words = sys.argv[1], sys.argv[2:]
    given = check_words(Config, words)
    config = Config(**{**CONFIG, "out": out, "backend": os.environ["KERAS_BACKEND"], **given})
    with recorder.beside(config.tracking_uri):
        launch.run_recipe(config, train)
