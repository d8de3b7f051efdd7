"""The generic check that every layer passes, and the comparison with its Keras twin."""

import keras
import numpy as np

from recipes.engine import gradients


def numpy_of(nest):
    return keras.tree.map_structure(lambda x: np.asarray(keras.ops.convert_to_numpy(x)), nest)


def at_once(function):
    """One program compiles in less time than one for each operation, where each is compiled: on JAX."""
    return gradients.compiled(function) if keras.backend.backend() == "jax" else function


def outputs_of(layer, tensors, **call_kwargs):
    def call(values, tensors):
        with keras.StatelessScope(list(zip(layer.variables, values, strict=True))):
            return layer(*tensors, **call_kwargs)

    return at_once(call)([variable.value for variable in layer.variables], tensors)


def symbol(x):
    return keras.Input(batch_shape=x.shape, dtype=keras.backend.standardize_dtype(x.dtype))


def built(layer, arguments, **call_kwargs):
    """The layer, with weights for these inputs, of which nothing is computed."""
    if not layer.built:
        layer(*keras.tree.map_structure(symbol, arguments), **call_kwargs)
    return layer


def outputs_and_gradients(layer, inputs, cotangents=None, **call_kwargs):
    """Outputs, and gradients of `sum(cotangent * output)` by the inputs and by every weight, as NumPy."""
    apply = gradients.functional(layer)
    trainable, state = gradients.variables_of(layer)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    floats = [
        keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
        for x in keras.tree.flatten(tensors)
    ]
    flat = keras.tree.flatten(tensors)

    def scalar(differentiable):
        weights, moving = differentiable
        moving = iter(moving)
        full = [next(moving) if is_float else fixed for fixed, is_float in zip(flat, floats, strict=True)]
        nest = keras.tree.pack_sequence_as(tensors, full)
        # A layer called on several positional inputs takes them as a tuple; on one list, as a list.
        arguments = nest if isinstance(nest, tuple) else (nest,)
        outputs, _ = apply(weights, state, *arguments, **call_kwargs)
        total = 0.0
        for index, output in enumerate(keras.tree.flatten(outputs)):
            if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(output.dtype)):
                continue
            if cotangents is None:
                # Any fixed, sign-changing weighting: a plain sum would hide errors that cancel.
                weight = np.cos(np.arange(int(np.prod(output.shape)))).reshape(tuple(output.shape))
            else:
                weight = cotangents[index]
            weight = keras.ops.convert_to_tensor(weight.astype("float32"))
            total = total + keras.ops.sum(weight * keras.ops.cast(output, "float32"))
        return total, outputs

    moving = [x for x, is_float in zip(flat, floats, strict=True) if is_float]
    (_, outputs), (weight_gradients, input_gradients) = at_once(
        gradients.value_and_grad(scalar, has_aux=True)
    )((trainable, moving))
    return numpy_of(outputs), numpy_of(weight_gradients), numpy_of(input_gradients)


def assert_parity(ours, theirs, inputs, tolerance=1e-5, **call_kwargs):
    """Our layer equals its Keras twin: weights, outputs, gradients by weights and inputs.

    Both are built on the inputs, then Keras' weights are copied into ours in Keras' order.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    for layer in (ours, theirs):
        built(layer, arguments, **call_kwargs)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    mine = outputs_and_gradients(ours, inputs, **call_kwargs)
    oracle = outputs_and_gradients(theirs, inputs, **call_kwargs)
    for what, a, b in zip(("outputs", "weight gradients", "input gradients"), mine, oracle, strict=True):
        for one, other in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype, what
            np.testing.assert_allclose(
                one,
                other,
                rtol=tolerance,
                atol=tolerance * max(1.0, np.abs(other).max(initial=0)),
                err_msg=what,
            )


def check_layer(make, inputs, tmp_path=None, twin=None, dynamic=True, low_precision=True, **call_kwargs):
    """One layer through everything that every layer must do.

    Args:
        make: a function `make(**extra)` that returns a fresh layer; `extra` may hold `dtype` and `name`.
        inputs: NumPy input, or a list of them where the layer takes a list, or a tuple for several
            positional arguments.
        tmp_path: where the `.keras` round trip is written; None leaves it out.
        twin: like `make`, for the Keras layer of the same name; None where Keras has none.
        dynamic: whether the batch size may be unknown when the model is made.
        low_precision: whether to run under mixed_float16 and mixed_bfloat16.
        call_kwargs: further arguments of every call.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, arguments)
    layer = built(make(), arguments, **call_kwargs)
    outputs = outputs_of(layer, tensors, **call_kwargs)
    shapes = keras.tree.map_structure(lambda x: tuple(x.shape), outputs)

    # Static shape: the layer knows its output without being called.
    if len(arguments) == 1 and not call_kwargs:
        input_shape = keras.tree.map_structure(lambda x: tuple(x.shape), arguments[0])
        computed = make().compute_output_shape(input_shape)
        flat = computed if isinstance(computed, list) else [computed]
        expected = keras.tree.flatten(outputs)
        assert [tuple(s) for s in flat] == [tuple(x.shape) for x in expected]

    # Config round trip: the same layer from its own description.
    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    built(clone, arguments, **call_kwargs).set_weights(layer.get_weights())
    again = outputs_of(clone, tensors, **call_kwargs)
    assert keras.tree.map_structure(lambda x: tuple(x.shape), again) == shapes

    # Symbolic, with an unknown batch size; then saved and loaded as a whole model.
    def symbolic_input(x):
        return keras.Input(x.shape[1:], batch_size=None if dynamic else x.shape[0], dtype=x.dtype.name)

    symbols = keras.tree.map_structure(symbolic_input, arguments)
    model = keras.Model(list(keras.tree.flatten(symbols)), make()(*symbols, **call_kwargs))
    flat_inputs = keras.tree.flatten(arguments)
    before = numpy_of(model(flat_inputs))
    assert keras.tree.map_structure(lambda x: x.shape, before) == shapes
    if tmp_path is not None:
        model.save(tmp_path / "layer.keras")
        loaded = keras.saving.load_model(tmp_path / "layer.keras")
        for a, b in zip(
            keras.tree.flatten(before), keras.tree.flatten(numpy_of(loaded(flat_inputs))), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    # Every weight and every floating-point input has a finite gradient, and every weight's is not zero.
    _, by_weights, by_inputs = outputs_and_gradients(layer, inputs, **call_kwargs)
    for variable, gradient in zip(layer.trainable_variables, by_weights, strict=True):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, variable.path
    assert all(np.isfinite(gradient).all() for gradient in by_inputs)

    if twin is not None:
        assert_parity(make(), twin(), inputs, **call_kwargs)
        shared = set(twin().get_config()) - {"name", "quantization_config"}
        assert shared <= set(make().get_config()), "config keys of the Keras layer"

    if low_precision:
        reference = keras.tree.flatten(numpy_of(outputs))
        for policy, dtype, tolerance in (
            ("mixed_float16", "float16", 1e-2),
            ("mixed_bfloat16", "bfloat16", 6e-2),
        ):
            low = built(make(dtype=policy), arguments, **call_kwargs)
            low.set_weights(layer.get_weights())
            results = keras.tree.flatten(outputs_of(low, tensors, **call_kwargs))
            for result, exact in zip(results, reference, strict=True):
                if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(result.dtype)):
                    continue
                assert keras.backend.standardize_dtype(result.dtype) == dtype
                result = numpy_of(keras.ops.cast(result, "float32"))
                scale = max(1.0, np.abs(exact).max())
                np.testing.assert_allclose(
                    result, exact, rtol=tolerance, atol=tolerance * scale, err_msg=policy
                )
    return layer
