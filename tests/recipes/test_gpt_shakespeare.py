"""The decoder-only Transformer: causality, the cache, positions, the tracked run."""

import os
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from keras import ops

from recipes import gpt_shakespeare as recipe
from recipes.engine import gradients, launch, models, probes
from recipes.engine.data import text as texts
from recipes.engine.errors import RecipeError
from recipes.engine.progress import Progress
from tests.recipes import agreement

CHARACTERS, CONTEXT = 11, 8
POSITIONAL = ("sinusoidal", "learned", "relative", "rotary", "alibi")
# JAX compiles slowly, and the encodings have tests of their own: all of them on PyTorch alone.
CACHED = POSITIONAL if keras.backend.backend() == "torch" else ("relative",)
LEARNS = {"steps": 60, "checkpoint_every": "25", "epochs": 2, "written": 10}


def network(rng, **fields):
    config = recipe.Config(**{"context": CONTEXT, "layers": 2, "heads": 2, "width": 8, **fields})
    model = recipe.build_model(config, CHARACTERS)
    agreement.set_weights_from_numpy(model, rng)
    return model


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run on the beginning of the built-in text: (metrics, folder)."""
    folder = tmp_path_factory.mktemp("gpt")
    load, before = texts.load, Path.cwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(texts, "load", lambda name, path=None: load(name, path, 60_000))
            keras.utils.set_random_seed(0)
            return launch.run_recipe(recipe.Config.small(**LEARNS), recipe.train), folder
    finally:
        os.chdir(before)


def test_it_learns_and_leaves_everything_in_mlflow(learned):
    """Clearly better than the frequencies of characters are."""
    metrics, folder = learned
    assert metrics["test/loss"] < metrics["baseline/characters"] - 0.3
    assert metrics["val/bits_per_character"] == pytest.approx(metrics["val/loss"] / np.log(2))
    assert metrics["characters_per_second/cached"] > 0 and metrics["characters_per_second/uncached"] > 0
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("gpt_shakespeare").experiment_id])
    assert run.info.status == "FINISHED"
    rates = [point.value for point in client.get_metric_history(run.info.run_id, "lr")]
    assert rates[0] < max(rates) / 2 and rates[-1] == pytest.approx(
        5e-4, rel=0.01
    )  # warm-up, cosine to a tenth
    figures = {Path(f.path).stem for f in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {"learning_curves", "attention", "loss_by_place"}
    (samples,) = folder.rglob("samples.txt")
    assert samples.read_text().count("=====\n\n") == 6
    model = models.load(f"runs:/{run.info.run_id}/model", f"sqlite:///{folder}/mlruns/mlflow.db")
    test = texts.windows(texts.load("python_docs", characters=60_000).test, 16, 16)
    assert recipe.losses_by_place(model, test).mean() == pytest.approx(metrics["test/loss"], rel=1e-5)


@pytest.mark.once  # that it is so on every backend is tested with the engine
def test_a_killed_run_goes_on(learned, tmp_path, monkeypatch):
    metrics, _ = learned
    monkeypatch.chdir(tmp_path)
    load = texts.load
    monkeypatch.setattr(texts, "load", lambda name, folder=None: load(name, folder, 60_000))
    keras.utils.set_random_seed(0)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(Killed):
        after = Progress.after_step

        def killed(self, values):
            after(self, values)
            if self.step == 70:
                raise Killed

        patch.setattr(Progress, "after_step", killed)
        launch.run_recipe(recipe.Config.small(**LEARNS), recipe.train)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("gpt_shakespeare").experiment_id])
    client.update_run(run.info.run_id, status="KILLED")
    keras.utils.clear_session()
    again = launch.run_recipe(recipe.Config.small(**LEARNS, resume=run.info.run_id), recipe.train)
    assert again["test/loss"] == metrics["test/loss"]


@pytest.mark.parametrize("positional", CACHED)
def test_a_cache_changes_nothing(positional, rng):
    """Character by character with a cache: the logits of the whole; past a full window, those without one."""
    model = network(rng, positional=positional)
    numbers = rng.integers(0, CHARACTERS, (2, 2 * CONTEXT)).astype("int32")
    window = numbers[:, :CONTEXT]
    whole = ops.convert_to_numpy(model(window))
    one, other = (
        np.stack([read(column[:, None]) for column in numbers.T], axis=1)
        for read in (recipe.cached(model, CONTEXT, rows=2), recipe.uncached(model, CONTEXT, rows=2))
    )
    np.testing.assert_allclose(one[:, :CONTEXT], whole, atol=2e-5)
    np.testing.assert_allclose(one, other, atol=2e-5)
    # Nor does the future change the past.
    changed = window.copy()
    changed[:, 5] = (changed[:, 5] + 1) % CHARACTERS
    difference = np.abs(ops.convert_to_numpy(model(changed)) - whole).max(axis=(0, 2))
    assert difference[:5].max() < 1e-6 < 1e-4 < difference[5:].min()


@pytest.mark.once
@pytest.mark.parametrize("positional", POSITIONAL)
def test_places_matter(positional, rng):
    """The same characters in another order are another text: without places only the last would count."""
    model = network(rng, positional=positional, layers=1)
    numbers = np.array([[1, 2, 3, 4], [3, 1, 2, 4]], "int32")
    first, second = ops.convert_to_numpy(model(numbers))[:, -1]
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize("positional", POSITIONAL)
def test_backends_agree(positional, rng, meeting_place):
    """Same weights, same characters: logits, loss and gradient."""
    model = network(rng, positional=positional, layers=1)
    x, y = (rng.integers(0, CHARACTERS, (3, CONTEXT)).astype("int32") for _ in range(2))
    results = agreement.outputs_loss_and_gradient(model, x, lambda logits: recipe.cross_entropy(y, logits))
    agreement.assert_backends_agree(meeting_place, f"gpt_shakespeare {positional}", results)


def test_recomputed_blocks_learn_the_same(rng, monkeypatch):
    """Losses, gradients and what becomes of the dropout's random numbers, over two steps."""
    x = rng.integers(0, CHARACTERS, (2, CONTEXT)).astype("int32")
    calls, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: calls.append(1) or remat(function))

    def steps(**fields):
        keras.utils.set_random_seed(1)
        model = network(np.random.default_rng(2), dropout=0.2, **fields)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)

        def step(x):
            value, slopes = gradients.by_variables(
                lambda: ops.mean(recipe.cross_entropy(x, model(x, training=True))), model.trainable_variables
            )
            gradients.update(optimizer, slopes)
            return value, slopes

        step = gradients.compiled_step(step, [*model.variables, *optimizer.variables])
        results = [step(ops.convert_to_tensor(x)) for _ in range(2)]
        arrays = keras.tree.map_structure(ops.convert_to_numpy, results)
        return model, arrays, [ops.convert_to_numpy(v) for v in model.non_trainable_variables]

    _, kept, numbers = steps()
    assert not calls
    model, recomputed, numbers_again = steps(remat=True)
    assert len(calls) >= 2  # one a block
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, recomputed)
    for one, other in zip(numbers, numbers_again, strict=True):
        np.testing.assert_array_equal(one, other)

    # Looking inside sees all layers, and leaves the blocks as they were.
    model.compile(loss=recipe.cross_entropy)
    seen = probes.Look(model)(x, x)
    assert seen["activation_std/feed_forward"] > 0
    before = len(calls)
    recipe.parts_of(model).blocks[0](ops.zeros((1, 2, 8)), training=True)
    assert len(calls) == before + 1


@pytest.mark.once
def test_the_network_is_nanogpts():
    """0.80 million weights without positions, as nanoGPT reports; one table for reading and writing."""
    model = recipe.build_model(recipe.Config(), 65)
    blocks = 4 * (4 * 128 * 128 + 2 * 4 * 128 * 128)
    norms = 9 * 2 * 128  # nanoGPT's have no offset, which leaves 9 * 128 out
    assert model.count_params() == 65 * 128 + 64 * 128 + blocks + norms
    untied = recipe.build_model(recipe.Config(tie=False), 65)
    assert untied.count_params() == model.count_params() + 65 * 128
    # The first loss is that of knowing nothing, and branches end in small maps: 0.02 / sqrt(2 * 4 layers).
    x, y = np.random.default_rng(0).integers(0, 65, (2, 4, 64)).astype("int32")
    loss = float(ops.mean(recipe.cross_entropy(y, model(x))))
    assert loss == pytest.approx(np.log(65), abs=0.1)
    stds = {
        f"{variable.path.rsplit('/', 2)[-2]}": float(np.std(ops.convert_to_numpy(variable)))
        for variable in model.trainable_variables
        if variable.name == "kernel"
    }
    assert stds["query"] == pytest.approx(0.02, rel=0.05)
    assert stds["attention_output"] == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert stds["output"] == pytest.approx(0.02 / 8**0.5, rel=0.05)


@pytest.mark.once
def test_attention_maps_are_causal_shares(rng):
    maps = recipe.attention_maps(network(rng), np.arange(CONTEXT, dtype=np.int32))
    assert maps.shape == (2, 2, CONTEXT, CONTEXT)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-5)
    assert np.triu(maps, 1).max() == 0 and maps[:, :, 0, 0].min() == pytest.approx(1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"width": 30}, "--width 30 is not a multiple of --heads 4"),
        ({"width": 12, "positional": "rotary"}, "--positional rotary turns pairs of features"),
        ({"context": 1}, "--context must be at least 2, not 1"),
        ({"dropout": -0.1}, r"--dropout must lie in \[0, 1\)"),
        ({"positional": "rope"}, "unknown value of --positional 'rope'"),
    ],
)
def test_bad_input_gets_one_sentence(fields, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe.Config(**fields)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA alone computes again too early")
@pytest.mark.parametrize("remat", [True, False])
def test_where_blocks_are_computed_again_memory_comes_first(remat, tmp_path, monkeypatch):
    """The benchmark shows what it saves; the flag must be there before JAX is used."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    config = recipe.Config(backend="jax", remat=remat, tracking_uri=f"sqlite:///{tmp_path}/m.db")
    seen = {}

    def train(config, run):
        seen["flags"] = os.environ["XLA_FLAGS"]
        return {}

    launch.run_recipe(config, train)
    assert seen["flags"].startswith("--xla_cpu_enable_fast_math=false")
    assert seen["flags"].endswith("_concurrency_optimized_scheduler=false") is remat
