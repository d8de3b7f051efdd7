"""Of a network that overfits on purpose, which regularization closes the gap between training and test?

A wide perceptron on few digits, of whose labels every third is drawn at random, trained until it knows them
by heart: as it is; with L1, L2, decoupled weight decay, dropout, shifted images; and the first run again,
stopped where the loss on validation digits was lowest. Validation and test digits have their true labels, so
that a network that does not believe the wrong ones is worse on training digits than on others.

References:
    Loshchilov and Hutter 2019, "Decoupled weight decay regularization". Srivastava et al. 2014, "Dropout".
    Prechelt 1998, "Early stopping - but when?".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import layers
from tuning import figures, networks
from tuning.evidence import Evidence, Quantity, Trial, curves_by_setting, values_by_setting
from tuning.statistics import interval, verdict

FIELDS = {"dropout": [0.0, 0.2, 0.5], "early_stopping": [0, 3]}
EXAMPLES, WRONG = 200, 1 / 3  # digits to learn from, and the share of labels drawn at random
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "L1": {"penalty": lambda: layers.L1(1e-3)},
    "L2": {"penalty": lambda: layers.L2(1e-2)},
    "decoupled decay": {"decay": 5.0},
    "dropout": {"dropout": 0.5},
    "augmentation": {"augment": True},
}


def shifted(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images of 8 x 8 moved by up to one pixel; what comes in from outside is the darkest value there is."""
    images = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=x.min())
    places = rng.integers(0, 3, (len(x), 2))
    return np.stack(
        [image[i : i + 8, j : j + 8] for image, (i, j) in zip(images, places, strict=True)]
    ).reshape(x.shape)


def investigate(seeds: Sequence[int], steps: int = 200, width: int = 256) -> Evidence:
    """Overfit, and regularize in each way.

    Args:
        seeds: of digits, weights and order.
        steps: updates, each on 50 examples.
        width: units of the hidden layer.
    """
    trials = [trial for name in SETTINGS for trial in train(name, seeds, steps, width)]
    trials += [stopped(trial) for trial in trials if trial.setting == "none"]
    accuracy = values_by_setting(trials, "test/accuracy")
    gap = {
        name: [a - b for a, b in zip(values, accuracy[name], strict=True)]
        for name, values in values_by_setting(trials, "train/accuracy").items()
    }
    losses = values_by_setting(trials, "test/loss")
    curves = {
        f"{name}, {part}": found
        for name in ("none", "dropout", "augmentation")
        for part in ("train", "test")
        for found in [curves_by_setting([t for t in trials if t.setting == name], f"{part}/loss")[name]]
    }
    return Evidence(
        [
            Quantity("test accuracy", accuracy),
            Quantity("generalization gap: accuracy on training less test digits", gap, True),
            Quantity("test loss", losses, True),
        ],
        {
            "learning_curves": figures.bands(
                curves, "cross-entropy", f"{EXAMPLES} digits, a third of them mislabelled"
            ),
            "gap": figures.intervals(gap, "generalization gap"),
        },
        f"unregularized the gap is {interval(gap['none'])}; {verdict('test accuracy', accuracy, False)}",
        trials,
    )


def mislabelled(task: networks.Task, seed: int) -> networks.Task:
    """The same task, a share of its training labels replaced by random ones."""
    rng = np.random.default_rng((seed, 59))
    drawn = rng.integers(0, 10, len(task.y)).astype(task.y.dtype)
    return dataclasses.replace(task, y=np.where(rng.random(len(task.y)) < WRONG, drawn, task.y))


def train(name: str, seeds: Sequence[int], steps: int, width: int) -> list[Trial]:
    """The network with one regularization, from every seed."""
    setting = SETTINGS[name]
    model = networks.perceptron([width], dropout=setting.get("dropout", 0.0))
    optimizer = layers.optimizers.AdamW(weight_decay=setting.get("decay", 0.0))
    penalty = setting["penalty"]() if "penalty" in setting else None
    training = networks.Training(model, optimizer, penalty=penalty)
    trials = []
    for seed in seeds:
        training.restart(seed, learning_rate=0.003)
        task = mislabelled(networks.digits(EXAMPLES, seed), seed)
        augment = shifted if setting.get("augment") else None
        trials.append(training.run(task, name, seed, steps, batch_size=50, looks=10, augment=augment))
    return trials


def stopped(trial: Trial) -> Trial:
    """The same run, as if ended where the loss on validation digits was lowest."""
    losses = [value for _, value in trial.curves["val/loss"]]
    last = int(np.argmin(losses)) + 1
    curves = {name: curve[:last] for name, curve in trial.curves.items()}
    metrics = {name: curve[-1][1] for name, curve in curves.items()}
    return dataclasses.replace(trial, setting="early stopping", curves=curves, metrics=metrics)
