"""Translation: it learns, its masks hold, its three ways to decode are one, its backends agree."""

import json

import keras
import mlflow
import numpy as np
import pytest
from keras import ops

import layers
from recipes import seq2seq_multi30k as recipe
from recipes.engine import launch, probes, translations
from recipes.engine import store as stores
from recipes.engine.data import translation
from recipes.engine.data.translation import Corpus, Pairs
from recipes.engine.errors import RecipeError
from tests.recipes import agreement


def translator(attention="luong-general", **options):
    config = recipe.Config(embedding=6, units=8, attention=attention, **{"dropout": 0.0, **options})
    model = recipe.Translator(config, 12, 10)
    model.build((None, 3, None))
    agreement.set_weights_from_numpy(model, np.random.default_rng(0))
    return config, model


@pytest.fixture(scope="module")
def batch():
    """Three pairs of unequal lengths, none of which fills the batch."""
    rng = np.random.default_rng(1)
    return translation.padded(
        [
            (rng.integers(4, 12, s).tolist(), rng.integers(4, 10, t).tolist())
            for s, t in ((3, 5), (6, 2), (4, 4))
        ]
    )


def numpy_of(tensor):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(tensor)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run on round numbers, whose few words all occur often: (store, client, run, metrics, corpus)."""
    folder = tmp_path_factory.mktemp("seq2seq")
    numbers = translation.load("numbers", "fr")

    def round_ones(pairs, count):
        both = [
            pair
            for pair in zip(pairs.source, pairs.target, strict=True)
            if "-" not in "".join(pair)
            and 4 < len(translation.words_of(pair[0])) <= 8  # one shape of batches
        ]
        return Pairs(*zip(*both[:count], strict=True))

    test = round_ones(numbers.tests["test"], 60)
    corpus = Corpus(
        "numbers", round_ones(numbers.train, 480), round_ones(numbers.validation, 60), {"test": test}
    )
    store = f"sqlite:///{folder}/mlruns/mlflow.db"
    config = recipe.Config.small(
        epochs=6, learning_rate=0.01, batch_size=32, units=32, embedding=32, beam=2, checkpoint_every="0",
        backend=keras.backend.backend(), tracking_uri=store,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "load", lambda *_: corpus)
        metrics = launch.run_recipe(config, recipe.train)
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("seq2seq_multi30k").experiment_id])
    return store, client, run, metrics, corpus


def test_it_learns_and_leaves_everything_in_mlflow(trained):
    store, client, run, metrics, corpus = trained
    assert run.info.status == "FINISHED"
    words = [word for s in corpus.validation.target for word in (*translation.words_of(s), translation.END)]
    most_frequent = max(words.count(word) for word in set(words)) / len(words)
    assert most_frequent < 0.5 and metrics["val/accuracy"] > 0.7
    assert metrics["val/loss"] < 0.6 * np.log(len(set(words)))
    assert metrics["test/bleu"] > 20 and 0.8 < metrics["test/length_ratio"] < 1.2
    assert run.data.tags["bleu.signature"].startswith("nrefs:1|case:lc|eff:no|tok:13a|")
    figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {f"figures/{n}.png" for n in ("learning_curves", "attention_maps", "bleu_by_length")}
    parameters, text = stores.read(store, run.info.run_id, "translations.json")
    stored = json.loads(text)["test"]
    assert parameters["attention"] == "luong-general"
    assert stored["source"] == list(corpus.tests["test"].source)
    score, _ = translations.bleu(stored["translation"], stored["reference"], lowercase=True)
    assert score == pytest.approx(metrics["test/bleu"])


def test_another_run_is_found_or_refused(trained):
    store, _, run, _, _ = trained
    config = recipe.Config.small(compare_with=run.info.run_id, tracking_uri=store)
    (label,) = recipe.other_run(config)
    assert label == "compared: luong-general, seed 0"
    with pytest.raises(RecipeError, match="there is no run 'abc'"):
        recipe.other_run(recipe.Config.small(compare_with="abc", tracking_uri=store))
    with pytest.raises(RecipeError, match="has no translations of multi30k to fr"):
        recipe.other_run(recipe.Config(compare_with=run.info.run_id, tracking_uri=store))


@pytest.mark.parametrize("attention", ["none", "bahdanau", "luong-dot"])
def test_padding_changes_nothing(attention, batch):
    """More padding, on both sides, and a row of it: the same loss, and the same logits of every word."""
    config, model = translator(attention)
    x, y = batch
    longer_x, longer_y = np.zeros((4, 3, 12), np.int32), np.zeros((4, 12), np.int32)
    longer_x[:3, :, :8], longer_y[:3, :8] = x, y
    loss = recipe.loss_of(config)
    values, logits = [], []
    for inputs, targets in ((x, y), (longer_x, longer_y)):
        outputs = model(ops.convert_to_tensor(inputs))
        values.append(float(numpy_of(loss(ops.convert_to_tensor(targets), outputs))))
        logits.append(numpy_of(outputs)[:3, :8][y > 0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("attention", ["none", "bahdanau", "luong-general"])
def test_a_search_continues_as_training_reads(attention, batch):
    """Word by word, with rows exchanged on the way, gives the probabilities of the whole sentence at once."""
    _, model = translator(attention, cell="lstm")
    x, _ = batch
    whole = numpy_of(ops.log_softmax(model(ops.convert_to_tensor(x)), axis=-1))
    states, memory = model.begin(ops.convert_to_tensor(np.repeat(x[:, 0], 2, axis=0)))
    for t in range(4):
        words = np.repeat(x[:, 1, t], 2).astype("int32")
        parents = np.array([1, 0, 3, 2, 5, 5], "int32")  # rows of the same sentence, which are equal
        said, states = model.say(ops.convert_to_tensor(words), ops.convert_to_tensor(parents), states, memory)
        np.testing.assert_allclose(numpy_of(said)[::2], whole[:, t], atol=2e-5)


@pytest.mark.parametrize("attention", ["bahdanau", "luong-general"])
def test_the_weights_drawn_are_those_used(attention, batch):
    """They sum to one, spare padding, and give the contexts that the decoder used."""
    _, model = translator(attention)
    x = ops.convert_to_tensor(batch[0])
    weights = numpy_of(model.alignment(x))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert weights[np.broadcast_to((batch[0][:, 0] == 0)[:, None], weights.shape)].max() < 1e-6
    states, memory = model.encode(x[:, 0])
    used = model.features(model.target_embedding(x[:, 1]), x[:, 2], states, memory, False)[..., 8:]
    np.testing.assert_allclose(weights @ numpy_of(memory[0]), numpy_of(used), atol=1e-5)


def test_sampling_reads_what_the_decoder_says(batch):
    """Nothing sampled, the loop is the sentence at once; all sampled, it is the greedy search."""
    _, model = translator(sampling=0.5)
    x = np.array(batch[0])
    np.testing.assert_allclose(
        numpy_of(model(ops.convert_to_tensor(x), training=True)),
        numpy_of(model(ops.convert_to_tensor(x), training=False)),
        atol=1e-5,
    )
    x[:, 2, 1:] = 1
    said = numpy_of(model(ops.convert_to_tensor(x), training=True)).argmax(axis=-1)  # (batch, T)
    states, memory = model.begin(ops.convert_to_tensor(x[:, 0]))
    words = np.full(3, translation.START, "int32")
    for t in range(x.shape[-1]):
        scores, states = model.say(ops.convert_to_tensor(words), ops.arange(3, dtype="int32"), states, memory)
        words = numpy_of(scores).argmax(axis=-1).astype("int32")
        np.testing.assert_array_equal(words, said[:, t])


def test_a_probe_sees_what_is_outside_of_the_loop(batch):
    """The decoder's parts run within the loop, where their outputs cannot be had; their gradients can."""
    config, model = translator("bahdanau")
    model.compile(loss=recipe.loss_of(config))
    values = probes.Look(model)(*batch)
    assert np.isfinite(list(values.values())).all()
    assert values[f"grad_norm/{model.query.name}"] > 0
    assert f"activation_mean/{model.combine.name}" in values
    assert f"activation_mean/{model.query.name}" not in values


def test_the_loss_is_the_smoothed_cross_entropy(rng):
    logits = rng.normal(size=(2, 5, 7)).astype("float32")
    targets = np.array([[3, 1, 6, 0, 0], [5, 5, 2, 1, 4]], np.int32)
    for smoothing in (0.0, 0.1):
        ours = numpy_of(recipe.token_losses(*map(ops.convert_to_tensor, (targets, logits)), smoothing))
        theirs = layers.losses.categorical_crossentropy(
            np.eye(7, dtype="float32")[targets], logits, from_logits=True, label_smoothing=smoothing
        )
        np.testing.assert_allclose(ours, np.where(targets == 0, 0, numpy_of(theirs)), atol=1e-5)
    mean = numpy_of(recipe.loss_of(recipe.Config())(targets, ops.convert_to_tensor(logits)))
    assert float(mean) == pytest.approx(ours.sum() / 8, rel=1e-5)  # of the last: smoothing 0.1


@pytest.mark.once
def test_bleu_by_length_groups_all_sentences():
    sources = ["a " * n for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10)]
    references = ["the cat sat on the mat again today"] * 12
    said = [*references[:6], *(["a dog ran off to its own house"] * 6)]
    outputs = {"test": {"source": sources, "reference": references, "translation": said}}
    groups = translations.bleu_by_length(outputs)
    assert sum(group[2] for group in groups) == 12 and groups[0][0] == 1 and groups[-1][1] == 10
    assert groups[0][3] == pytest.approx(100) and groups[-1][3] < 10


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("luong-dot", {"cell": "lstm"}),
        ("luong-general", {"sampling": 0.5}),
        ("bahdanau", {}),
    ],
)
def test_backends_agree(attention, options, batch, meeting_place):
    """Same weights, same sentences: logits, loss and every gradient, to 1e-5 of the largest."""
    config, model = translator(attention, **options)
    x, y = np.array(batch[0]), batch[1]
    x[:, 2, [2, 4]] = config.sampling > 0
    loss_of = recipe.loss_of(config)
    results = agreement.outputs_loss_and_gradient(model, x, lambda logits: loss_of(y, logits))
    agreement.assert_backends_agree(meeting_place, f"seq2seq {attention}", results)


@pytest.mark.once
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dataset": "numbers", "target": "de"}, "--dataset numbers has no German"),
        ({"units": 7}, "--units must be even, half for each direction, not 7"),
        ({"beam": 0}, "--beam must be at least 1, not 0"),
        ({"sampling": 1.5}, "--sampling must lie in 0 ... 1, not 1.5"),
        ({"dropout": 1.0}, "--dropout must lie in 0 ... 1, not 1.0"),
        ({"attention": "luong"}, "unknown value of --attention 'luong': did you mean 'luong-dot'?"),
    ],
)
def test_bad_input_gets_one_sentence(fields, sentence):
    with pytest.raises(RecipeError) as error:
        recipe.Config(**fields)
    assert str(error.value).startswith(sentence) and error.value.exit_code == 2
