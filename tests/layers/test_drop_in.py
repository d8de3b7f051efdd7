"""Every public name that Keras has too: the same arguments, defaults, call arguments and description."""

import inspect

import keras
import pytest

import layers
from layers import activations, initializers, losses, optimizers, schedules

MODULES = {
    "layers": (layers, keras.layers),
    "activations": (activations, keras.activations),
    "initializers": (initializers, keras.initializers),
    "losses": (losses, keras.losses),
    "optimizers": (optimizers, keras.optimizers),
    "schedules": (schedules, keras.optimizers.schedules),
}
SHARED = [
    (module, name)
    for module, (ours, theirs) in MODULES.items()
    for name in sorted(set(dir(ours)) & set(dir(theirs)))
    if not name.startswith("_") and callable(getattr(ours, name))
]
CLASSES = [pair for pair in SHARED if inspect.isclass(getattr(MODULES[pair[0]][0], pair[1]))]
# What objects cannot be made without.
REQUIRED = {
    "units": 3,
    "filters": 4,
    "kernel_size": 2,
    "pool_size": 2,
    "rate": 0.1,
    "stddev": 0.1,
    "input_dim": 5,
    "output_dim": 4,
    "num_heads": 2,
    "key_dim": 3,
    "initial_learning_rate": 0.1,
    "decay_steps": 10,
    "first_decay_steps": 10,
    "decay_rate": 0.5,
    "boundaries": [1],
    "values": [0.2, 0.1],
}
# Keras' spatial dropout alone gives its dtype by name, without the policy.
DESCRIBED_OTHERWISE = {"dtype"}


def twins(module, name):
    return [getattr(side, name) for side in MODULES[module]]


def parameters(owner):
    """Names and defaults in order; a size for each axis, (2, 2), is the same as one for all, 2."""
    named = [p for p in inspect.signature(owner).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = [p.default[0] if isinstance(p.default, tuple) else p.default for p in named]
    return [(p.name, default) for p, default in zip(named, defaults, strict=True)]


def made(cls):
    required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    special = {
        "cell": keras.layers.GRUCell(3, name="inner"),
        "cells": [keras.layers.GRUCell(3, name="inner")],
        "layer": keras.layers.GRU(3, name="inner"),
    }
    known = REQUIRED | special
    return cls(**{name: known[name] for name in required if name in known}, name="same")


def test_names_are_found():
    assert len(SHARED) > 80 and {module for module, _ in SHARED} == set(MODULES)


@pytest.mark.once
@pytest.mark.parametrize("module, name", SHARED)
def test_arguments(module, name):
    ours, theirs = map(parameters, twins(module, name))
    if module == "optimizers":  # the base's, from `clipnorm` on, are taken by keyword
        theirs = theirs[: len(ours)]
    # Ours may take more, after Keras'.
    assert ours[: len(theirs)] == theirs


@pytest.mark.once
@pytest.mark.parametrize("name", [name for module, name in CLASSES if module == "layers"])
def test_call_arguments(name):
    ours, theirs = (parameters(cls.call) for cls in twins("layers", name))
    assert ours[: len(theirs)] == theirs


@pytest.mark.once
@pytest.mark.parametrize("module, name", [pair for pair in CLASSES if pair[0] != "initializers"])
def test_config(module, name):
    ours, theirs = (made(cls).get_config() for cls in twins(module, name))
    theirs = {key: value for key, value in theirs.items() if key not in DESCRIBED_OTHERWISE}
    assert {key: ours.get(key, "missing") for key in theirs} == theirs
