"""Agreement of the scalar engine, the tensor engine and the frameworks; gradient flow."""

import numpy as np
import pytest

from recipes import autograd_engine as recipe
from recipes.engine.launch import run_recipe

pytestmark = pytest.mark.once


def test_scalar_and_tensor_engine_agree():
    arguments = recipe.points(3)
    found = recipe.differences(recipe.tensor_gradients(arguments), recipe.scalar_gradients(arguments))
    assert set(found) == set(recipe.SCALAR)
    assert max(found.values()) < 1e-13


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_frameworks_agree(framework):
    pytest.importorskip(framework, reason=f"{framework} is the oracle of this test")
    arguments = recipe.points(4)
    # In this process, which may have JAX in single precision: the same 64-bit mode as in the recipe's own.
    if framework == "jax":
        import jax

        with jax.enable_x64(True):
            theirs = {
                name: [
                    np.asarray(g)
                    for g in jax.grad(
                        lambda *values, f=recipe.formula(name): f(jax.numpy, *values),
                        argnums=tuple(range(len(arrays))),
                    )(*arrays)
                ]
                for name, arrays in arguments.items()
            }
    else:
        theirs = recipe.framework_gradients(framework, arguments)
    found = recipe.differences(recipe.tensor_gradients(arguments), theirs)
    assert set(found) == {*recipe.SCALAR, *recipe.TENSOR}
    assert max(found.values()) < 1e-12


def test_gradient_flow_shows_what_initialization_does():
    config = recipe.Config.small(depth=12, width=32)

    def ratio(name):
        norms = recipe.gradient_flow(config, *recipe.FLOWS[name])
        return norms[0] / norms[-1]

    assert ratio("sigmoid, Xavier") < 1e-5
    assert 0.1 < ratio("ReLU, He") < 10
    assert ratio("tanh, too large") > 10


def test_a_run_draws(tmp_path):
    config = recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = run_recipe(config, recipe.train)
    assert metrics["difference/scalar_engine"] < 1e-12
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"graph", "agreement", "derivatives", "gradient_flow"}
