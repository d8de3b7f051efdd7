"""Every public name that Keras has too: arguments, defaults, description; built layers, files and errors."""

import inspect
import warnings

import keras
import numpy as np
import pytest
from keras.src.backend import get_keras_mask, set_keras_mask

import layers
from layers import activations, initializers, losses, optimizers, schedules
from tests.layers.checking import numpy_of

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


def made(cls, **more):
    required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    special = {
        "cell": keras.layers.GRUCell(3, name="inner"),
        "cells": [keras.layers.GRUCell(3, name="inner")],
        "layer": keras.layers.GRU(3, name="inner"),
    }
    known = REQUIRED | special
    return cls(**{name: known[name] for name in required if name in known}, **more)


def test_names_are_found():
    assert len(SHARED) > 80 and {module for module, _ in SHARED} == set(MODULES)


@pytest.mark.once
@pytest.mark.parametrize("module, name", SHARED)
def test_arguments(module, name):
    ours, theirs = map(parameters, twins(module, name))
    if module == "optimizers":  # the base's come from `clipnorm` on: `test_arguments_by_position`
        theirs = theirs[: len(ours)]
    # Ours may take more, after Keras'.
    assert ours[: len(theirs)] == theirs


@pytest.mark.once
@pytest.mark.parametrize("name", [name for module, name in CLASSES if module == "layers"])
def test_call_arguments(name):
    ours, theirs = (parameters(cls.call) for cls in twins("layers", name))
    assert ours[: len(theirs)] == theirs


@pytest.mark.once
@pytest.mark.parametrize("name", [name for module, name in CLASSES if module == "optimizers"])
def test_build_arguments(name):
    ours, theirs = (parameters(cls.build) for cls in twins("optimizers", name))
    assert ours == theirs


@pytest.mark.once
@pytest.mark.parametrize("module, name", [pair for pair in CLASSES if pair[0] != "initializers"])
def test_config(module, name):
    ours, theirs = (made(cls, name="same").get_config() for cls in twins(module, name))
    theirs = {key: value for key, value in theirs.items() if key not in DESCRIBED_OTHERWISE}
    assert {key: ours.get(key, "missing") for key in theirs} == theirs


# Words that some class takes though its signature does not name them, and one that none takes.
WORDS = ["autocast", "batch_input_shape", "batch_size", "data_format", "fn", "implementation"]
WORDS += ["input_length", "input_shape", "noise_shape", "recurrent_activation", "trainable", "unknown"]
WORDS += ["zero_output_for_mask"]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # of deprecated words
@pytest.mark.parametrize("module, name", CLASSES)
def test_words_that_no_signature_names(module, name):
    ours, theirs = twins(module, name)
    for word in sorted(set(WORDS) - set(inspect.signature(ours).parameters)):
        errors = []
        for cls in (ours, theirs):
            try:
                made(cls, **{word: 1})
                errors.append(None)
            except Exception as error:
                errors.append((type(error), str(error)))
        if errors[1] is None or errors[1][0] is TypeError:  # Python's message may name a base's constructor
            errors = [error and error[0] for error in errors]
        assert errors[0] == errors[1], word


@pytest.mark.once
@pytest.mark.parametrize("module, name", CLASSES)
def test_attributes(module, name):
    ours, theirs = (made(cls) for cls in twins(module, name))
    assert not public(theirs) - public(ours)
    if module == "losses":
        assert ours.fn is getattr(losses, theirs.fn.__name__)
        assert ours._fn_kwargs == theirs._fn_kwargs
    if hasattr(theirs, "variable_serialization_spec"):  # "gptq" and "awq" are for Keras' own classes
        spec = ours.variable_serialization_spec
        assert spec == {mode: theirs.variable_serialization_spec.get(mode) for mode in spec}


@pytest.mark.once
@pytest.mark.parametrize("name", [name for module, name in CLASSES if module == "optimizers"])
def test_arguments_by_position(name):
    ours, theirs = twins("optimizers", name)
    # Two that exclude each other stay as they are.
    given = {"weight_decay": 0.1, "clipnorm": 2.0, "use_ema": True, "ema_momentum": 0.5, "name": "same"}
    given |= {"ema_overwrite_frequency": 3, "loss_scale_factor": 4.0, "gradient_accumulation_steps": 5}
    values = [given.get(argument, default) for argument, default in parameters(theirs)]
    assert ours(*values).get_config() == theirs(*values).get_config()
    for cls in (ours, theirs):
        with pytest.raises(TypeError):
            cls(*values, 1.0)


# A layer's options and the shape of its input, batch apart; tokens are whole numbers.
SEQUENCE, IMAGE, VECTOR = (5, 4), (8, 8, 4), (6,)
BUILT = [
    ("Dense", {"units": 3}, VECTOR),
    ("Conv1D", {"filters": 4, "kernel_size": 3, "padding": "causal", "groups": 2}, SEQUENCE),
    ("Conv2D", {"filters": 4, "kernel_size": 3, "padding": "same", "strides": 2}, IMAGE),
    ("Conv2D", {"filters": 4, "kernel_size": 3, "data_format": "channels_first"}, IMAGE),
    ("Conv2DTranspose", {"filters": 4, "kernel_size": 3, "strides": 2, "output_padding": 1}, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}, IMAGE),
    ("SeparableConv2D", {"filters": 3, "kernel_size": 3}, IMAGE),
    ("Embedding", {"input_dim": 7, "output_dim": 3, "mask_zero": True}, ()),
    ("ReversibleEmbedding", {"input_dim": 7, "output_dim": 3, "tie_weights": False}, ()),
    ("BatchNormalization", {"center": False}, SEQUENCE),
    ("BatchNormalization", {"axis": 1, "renorm": True}, SEQUENCE),
    ("LayerNormalization", {}, SEQUENCE),
    ("LayerNormalization", {"axis": [1, -1]}, SEQUENCE),
    ("GroupNormalization", {"groups": 2}, SEQUENCE),
    ("RMSNormalization", {"axis": [1, -1]}, SEQUENCE),
    ("SimpleRNN", {"units": 3, "return_sequences": True}, SEQUENCE),
    ("GRU", {"units": 3, "return_state": True}, SEQUENCE),
    ("LSTM", {"units": 3, "return_sequences": True, "return_state": True}, SEQUENCE),
    ("SimpleRNNCell", {"units": 3}, VECTOR),
    ("GRUCell", {"units": 3}, VECTOR),
    ("LSTMCell", {"units": 3}, VECTOR),
    ("Dropout", {"rate": 0.1}, VECTOR),
    ("Dropout", {"rate": 0.0}, VECTOR),
    ("GaussianNoise", {"stddev": 0.1}, VECTOR),
    ("SpatialDropout1D", {"rate": 0.1}, SEQUENCE),
    ("SpatialDropout2D", {"rate": 0.1}, IMAGE),
    ("Attention", {"use_scale": True, "score_mode": "concat"}, SEQUENCE),
    ("AdditiveAttention", {}, SEQUENCE),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3, "output_shape": 7, "use_gate": True}, SEQUENCE),
    ("MaxPooling1D", {"pool_size": 3, "strides": 1, "padding": "same"}, SEQUENCE),
    ("MaxPooling2D", {"data_format": "channels_first"}, IMAGE),
    ("AveragePooling1D", {"pool_size": 2}, SEQUENCE),
    ("AveragePooling2D", {"pool_size": 2}, IMAGE),
    ("GlobalMaxPooling1D", {"keepdims": True}, SEQUENCE),
    ("GlobalMaxPooling2D", {}, IMAGE),
    ("GlobalAveragePooling1D", {}, SEQUENCE),
    ("GlobalAveragePooling2D", {"data_format": "channels_first"}, IMAGE),
]
# Wrappers: `made` knows how.
WRAPPERS = {"RNN", "StackedRNNCells", "Bidirectional"}


def symbolic_arguments(name, layer, shape):
    symbol = keras.Input(shape, dtype="float32" if shape else "int32")
    if name == "MultiHeadAttention":
        return symbol, symbol
    if name in ("Attention", "AdditiveAttention"):
        return ([symbol, symbol],)
    if name.endswith("Cell"):
        return symbol, [keras.Input((size,)) for size in keras.tree.flatten(layer.state_size)]
    return (symbol,)


def public(instance):
    """The names of all that a user may read."""
    return {name for name in dir(instance) if not name.startswith("_")}


def plain(values):
    """Numbers, names and None, tuples as lists: what two layers can be compared by."""
    values = {key: [*value] if isinstance(value, tuple) else value for key, value in values.items()}
    return {
        key: value
        for key, value in values.items()
        if not key.startswith("_")
        and isinstance(value, (int, float, str, list, type(None)))
        # Lists of strings: arguments of `call`, of which ours may have more.
        and not (isinstance(value, list) and value and isinstance(value[0], str))
    }


def test_every_layer_is_built():
    names = {name for module, name in CLASSES if module == "layers"}
    assert names == {name for name, *_ in BUILT} | WRAPPERS


@pytest.mark.once
@pytest.mark.parametrize("name, options, shape", BUILT)
def test_built(name, options, shape, tmp_path):
    facts, models, states = [], [], []
    for cls in twins("layers", name):
        layer = cls(**options, name="same")
        born_built = layer.built
        arguments = symbolic_arguments(name, layer, shape)
        outputs = layer(*arguments)
        shapes = [tuple(argument.shape) for argument in keras.tree.flatten(arguments)]
        facts.append(
            {
                "built": (born_built, layer.built),
                "outputs": [(tuple(x.shape), x.dtype) for x in keras.tree.flatten(outputs)],
                "weights": [(w.path, w.shape, w.dtype, w.trainable) for w in layer.weights],
                "count": layer.count_params(),
                "build config": keras.tree.map_structure(str, layer.get_build_config()),
                "input spec": str(keras.tree.map_structure(repr, layer.input_spec)),
                "masks": layer.supports_masking,
                "axis": layer.get_config().get("axis"),
            }
        )
        if not name.endswith("Cell"):  # Keras' cells have no such method
            two = name == "MultiHeadAttention"
            shapes = [shapes[0]] * 2 if two else [shapes] if len(shapes) > 1 else shapes[:1]
            facts[-1]["output shape"] = tuple(layer.compute_output_shape(*shapes))
        models.append(keras.Model(keras.tree.flatten(arguments), outputs))
        states.append(
            plain(vars(layer) | {key: getattr(layer, key) for key in options if hasattr(layer, key)})
        )
    assert facts[0] == facts[1]
    # Attributes: what Keras' layer shows.
    ours, theirs = models[0].get_layer("same"), states[1]
    assert not public(models[1].get_layer("same")) - public(ours)
    assert {key: plain({key: getattr(ours, key)}).get(key) for key in theirs} == theirs
    # Weights go through files either way.
    for here, there in ((0, 1), (1, 0)):
        models[here].save_weights(tmp_path / "one.weights.h5")
        models[there].load_weights(tmp_path / "one.weights.h5")
        for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        models[1].set_weights([weight + 1 for weight in models[1].get_weights()])


def mask_facts(layer, name, arguments, mask):
    """What a layer says of a mask, gives for one, and lets through where it stands in a model."""
    facts = [layer.supports_masking]
    inputs = arguments[0] if len(arguments) == 1 else list(arguments)
    masks = [mask] * len(inputs) if isinstance(inputs, list) else mask
    for given in (None, masks):
        try:
            facts.append(layer.compute_mask(inputs, given))
        except Exception as error:
            facts.append(type(error))
    for argument in keras.tree.flatten(arguments):
        set_keras_mask(argument, mask)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = layer(*arguments)
    facts.append([get_keras_mask(output) for output in keras.tree.flatten(outputs)])
    facts.append([str(warning.message) for warning in caught])
    return keras.tree.map_structure(lambda x: numpy_of(x).tolist() if keras.ops.is_tensor(x) else x, facts)


# Keras' cells have no masks; its RMSNormalization over several axes mistakes one for another; and on CPUs
# TensorFlow has no convolution of channels in front.
MASKED = [
    (name, options, shape)
    for name, options, shape in BUILT
    if not name.endswith("Cell") and name != "RMSNormalization" and "data_format" not in options
]
MASKED += [("RMSNormalization", {}, SEQUENCE)]
MASKED += [("Bidirectional", {"layer": keras.layers.GRU(3, return_sequences=True)}, SEQUENCE)]
MASKED += [("RNN", {"cell": keras.layers.GRUCell(3), "return_sequences": True}, SEQUENCE)]


@pytest.mark.parametrize("name, options, shape", MASKED)
def test_masks(name, options, shape):
    facts = []
    for cls in twins("layers", name):
        layer = cls(**options, name="same")
        many = name in ("Attention", "AdditiveAttention", "MultiHeadAttention")
        shapes = (2, *(shape or (5,)))
        tensor = keras.ops.reshape(keras.ops.arange(np.prod(shapes)), shapes) % 4
        tensor = keras.ops.cast(tensor, "float32" if shape else "int32")
        tensors = [keras.ops.copy(tensor) for _ in range(2 if many else 1)]
        arguments = tensors if name == "MultiHeadAttention" else [tensors] if many else tensors
        mask = keras.ops.convert_to_tensor(np.arange(2 * 5).reshape(2, 5)[:, : shapes[1]] % 5 < 3)
        facts.append(mask_facts(layer, name, arguments, mask))
    assert facts[0] == facts[1]


# What Keras' own configs lose: a round trip through Keras' class makes them the default.
LOST = {"Dense": {"activity_regularizer"}, "SimpleRNN": {"seed"}}


@pytest.mark.once
@pytest.mark.parametrize("name, options, shape", BUILT)
def test_configs_go_both_ways(name, options, shape):
    ours, theirs = (cls(**options, name="same") for cls in twins("layers", name))
    for source, target in ((ours, theirs), (theirs, ours)):
        again = type(target).from_config(source.get_config()).get_config()
        differing = {
            key for key in again | source.get_config() if again.get(key) != source.get_config().get(key)
        }
        assert differing <= LOST.get(name, set()) | DESCRIBED_OTHERWISE
        assert type(target).from_config(source.get_config()).dtype_policy == source.dtype_policy


def specification(layer, arguments):
    spec = layer.compute_output_spec(*arguments)
    return [(tuple(x.shape), x.dtype) for x in keras.tree.flatten(spec)]


@pytest.mark.once
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("name, options, shape", BUILT)
def test_symbolic_outputs_and_dtypes(name, options, shape, policy):
    facts = []
    for cls in twins("layers", name):
        layer = cls(**options, name="same", dtype=policy)
        arguments = symbolic_arguments(name, layer, shape)
        # On PyTorch Keras' cells forget to cast their symbolic outputs.
        told = (lambda *_: None) if name.endswith("Cell") else specification
        unbuilt = told(layer, arguments)
        layer(*arguments)
        facts.append(
            {
                "outputs": (unbuilt, told(layer, arguments)),
                "weights": [(w.name, w.dtype) for w in layer.weights],
                "dtypes": (layer.dtype, layer.compute_dtype, layer.variable_dtype, layer.autocast),
            }
        )
    assert facts[0] == facts[1]


@pytest.mark.once
@pytest.mark.parametrize("name, options, shape", [case for case in BUILT if not case[0].endswith("Cell")])
def test_summary(name, options, shape):
    summaries = []
    for cls in twins("layers", name):
        layer = cls(**options, name="same")
        arguments = symbolic_arguments(name, layer, shape)
        for index, argument in enumerate(keras.tree.flatten(arguments)):
            argument._keras_history.operation.name = f"input_{index}"
        lines = []
        model = keras.Model(keras.tree.flatten(arguments), layer(*arguments), name="model")
        model.summary(print_fn=lambda line, **_: lines.append(line), expand_nested=True)
        summaries.append("\n".join(lines))
    assert "same" in summaries[0] and summaries[0] == summaries[1]


KERNEL = {"filters": 4, "kernel_size": 3}
CONVOLUTIONS = [
    ("Conv1D", KERNEL, SEQUENCE),
    ("Conv2D", KERNEL, IMAGE),
    ("Conv2DTranspose", KERNEL, IMAGE),
    ("SeparableConv2D", KERNEL, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 3}, IMAGE),
]
POOLINGS = [
    (f"{kind}Pooling{rank}D", {"pool_size": 2}, shape)
    for kind in ("Max", "Average")
    for rank, shape in ((1, SEQUENCE), (2, IMAGE))
]
RECURRENT = [(name, {"units": 3}, SEQUENCE) for name in ("SimpleRNN", "GRU", "LSTM")]
CELLS = [(f"{name}Cell", options, VECTOR) for name, options, _ in RECURRENT]
TABLES = [(name, {"input_dim": 7, "output_dim": 3}, ()) for name in ("Embedding", "ReversibleEmbedding")]
DROPOUTS = [("Dropout", {}, VECTOR), ("SpatialDropout1D", {}, SEQUENCE), ("SpatialDropout2D", {}, IMAGE)]
NORMALIZATIONS = [(f"{kind}Normalization", {}, SEQUENCE) for kind in ("Batch", "Layer", "Group", "RMS")]
ATTENTION = [("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}, SEQUENCE)]
DENSE = [("Dense", {"units": 3}, VECTOR)]
# Layers, options that replace good ones, and, where it is the input that is bad, its shape.
BAD = [
    (DENSE + RECURRENT + CELLS, {"units": -1}, None),
    (DENSE + RECURRENT + CELLS, {"units": 0}, None),
    (DENSE + RECURRENT + CELLS, {"units": "3"}, None),
    (DENSE + RECURRENT + CELLS, {"units": None}, None),
    (DENSE + RECURRENT + CELLS + CONVOLUTIONS, {"activation": "unknown"}, None),
    (DENSE + RECURRENT + CELLS, {"kernel_initializer": "unknown"}, None),
    (DENSE + RECURRENT + CELLS, {"kernel_regularizer": "unknown"}, None),
    (DENSE + RECURRENT + CONVOLUTIONS + POOLINGS + TABLES + ATTENTION, {"unknown": 1}, None),
    (DENSE + RECURRENT + CONVOLUTIONS + POOLINGS + TABLES + ATTENTION, {"dtype": "unknown"}, None),
    (DENSE + RECURRENT + CONVOLUTIONS + POOLINGS, {}, ()),
    (RECURRENT + POOLINGS, {}, (5, 5, 5, 4)),
    (RECURRENT, {"stateful": True}, SEQUENCE),
    (CONVOLUTIONS + POOLINGS, {"padding": "unknown"}, None),
    (CONVOLUTIONS[1:] + POOLINGS, {"padding": "causal"}, None),
    (CONVOLUTIONS + POOLINGS + DROPOUTS[2:], {"data_format": "unknown", "rate": 0.1}, None),
    (CONVOLUTIONS, {"kernel_size": 0}, None),
    (CONVOLUTIONS, {"kernel_size": (3, 3, 3)}, None),
    (CONVOLUTIONS, {"strides": 0}, None),
    (CONVOLUTIONS[:2], {"strides": 2, "dilation_rate": 2}, None),
    (CONVOLUTIONS[1:3], {}, (*IMAGE[:-1], None)),
    (CONVOLUTIONS[:4], {"filters": 0}, None),
    (CONVOLUTIONS[:2], {"groups": 3}, None),
    (CONVOLUTIONS[:2], {"groups": 0}, None),
    (CONVOLUTIONS[:2], {"filters": 6, "groups": 6}, None),
    (CONVOLUTIONS[2:3], {"strides": 2, "output_padding": 2}, None),
    (CONVOLUTIONS[3:], {"depth_multiplier": 0}, None),
    (POOLINGS, {"pool_size": 0}, None),
    (POOLINGS, {"pool_size": (2, 2, 2)}, None),
    (POOLINGS, {"pool_size": 9}, None),
    (TABLES, {"input_dim": 0}, None),
    (TABLES, {"output_dim": -1}, None),
    (TABLES, {"weights": [np.zeros((2, 2))]}, None),
    (DROPOUTS, {"rate": -0.1}, None),
    (DROPOUTS, {"rate": 1.5}, None),
    (DROPOUTS, {"rate": "much"}, None),
    (DROPOUTS[:1], {"rate": 0.1, "noise_shape": (0, 1)}, None),
    (DROPOUTS[1:], {"rate": 0.1}, VECTOR),
    (NORMALIZATIONS[:3], {"axis": 7, "groups": 2}, None),
    (NORMALIZATIONS, {"axis": "last", "groups": 2}, None),
    (NORMALIZATIONS[2:3], {"groups": 3}, None),
    (ATTENTION, {"num_heads": 0}, None),
    (ATTENTION, {"key_dim": -1}, None),
    (ATTENTION, {"output_shape": "wide"}, None),
    (ATTENTION, {"sliding_window": 0}, None),
    (ATTENTION, {"flash_attention": True, "dropout": 0.1}, None),
    ([("Attention", {}, SEQUENCE)], {"score_mode": "unknown"}, None),
]


def taken(cls, options):
    """Those of the options that this class has a word for, or that no class has."""
    known = inspect.signature(cls).parameters
    elsewhere = {"rate", "groups"} - set(known)
    return {key: value for key, value in options.items() if key not in elsewhere}


@pytest.mark.once
@pytest.mark.parametrize("cases, options, shape", BAD, ids=[f"{bad}-{shape}" for _, bad, shape in BAD])
def test_errors(cases, options, shape):
    for name, good, good_shape in cases:
        errors = []
        for cls in twins("layers", name):
            with pytest.raises(Exception) as caught:
                layer = cls(**good | taken(cls, options))
                layer(*symbolic_arguments(name, layer, good_shape if shape is None else shape))
            errors.append(caught.type)
        # Ours may be of two kinds at once, a ValueError among them.
        assert issubclass(*errors), name


@pytest.mark.parametrize("name", ["SimpleRNN", "GRU", "LSTM"])
def test_a_state_is_missing(name):
    steps = np.zeros((2, 5, 4), "float32")
    errors = []
    for cls in twins("layers", name):
        layer = cls(3)
        given = [np.zeros((2, 3), "float32")] * (len(keras.tree.flatten(layer.cell.state_size)) - 1)
        with pytest.raises(Exception) as caught:
            layer(steps, initial_state=given)
        errors.append(caught.type)
    assert errors[0] is errors[1]


@pytest.mark.once
@pytest.mark.parametrize("module, name", [pair for pair in CLASSES if pair[1] not in WRAPPERS])
def test_bad_config(module, name):
    errors = []
    for cls in twins(module, name):
        with pytest.raises(Exception) as caught:
            cls.from_config({"unknown": 1})
        errors.append(caught.type)
    assert errors[0] is errors[1]
