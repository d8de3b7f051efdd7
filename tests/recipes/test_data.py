"""Data is what it says, the same every time, and its absence is explained within seconds."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from recipes.engine import data
from recipes.engine.data import Split, builtin, tfds
from recipes.engine.errors import RecipeError

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes")


def test_shapes_are_ten_even_classes_and_always_the_same(shapes):
    assert shapes.train.x.shape == (12_000, 32, 32, 3) and shapes.train.x.dtype == np.uint8
    assert set(np.bincount(shapes.train.y)) == {1200}
    assert len(shapes.labels) == 10
    assert data.load("shapes") is shapes
    data.load.cache_clear()
    again = data.load("shapes")
    assert again is not shapes and again.fingerprint == shapes.fingerprint
    changed = data.Dataset(
        "x", Split(shapes.train.x, shapes.train.y[::-1]), shapes.validation, shapes.test, ()
    )
    assert changed.fingerprint != shapes.fingerprint


def test_shapes_are_too_hard_for_a_linear_model(shapes):
    from sklearn.linear_model import RidgeClassifier

    def flat(images):
        return images.reshape(len(images), -1) / 255.0

    model = RidgeClassifier(alpha=100.0).fit(flat(shapes.train.x[:5000]), shapes.train.y[:5000])
    assert model.score(flat(shapes.test.x), shapes.test.y) < 0.6


def test_each_figure_covers_some_of_its_disc():
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    shares = {name: (figure(columns, rows) < 0).mean() for name, figure in builtin.FIGURES.items()}
    assert all(0.1 < share < 0.9 for share in shares.values()), shares


def test_digits():
    digits = data.load("digits")
    assert digits.test.x.shape == (500, 8, 8, 1) and digits.train.x.max() == 255
    assert len(digits.train) + len(digits.validation) == 1297


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    own, (x, y) = builtin.digits()[0], load_digits(return_X_y=True)
    images, kinds = (np.concatenate([own[split][part] for split in ("train", "test")]) for part in (0, 1))
    np.testing.assert_array_equal(images.reshape(-1, 64), np.round(x * (255 / 16)))
    np.testing.assert_array_equal(kinds, y)


def test_validation_is_apart_from_training_and_fixed():
    digits = data.load("digits")
    train = {image.tobytes() for image in digits.train.x}
    assert not train & {image.tobytes() for image in digits.validation.x}
    data.load.cache_clear()
    assert data.load("digits").fingerprint == digits.fingerprint


@pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", ""), "cifar10").is_dir() or "TFDS_DATA_DIR" not in os.environ,
    reason="TFDS_DATA_DIR holds no prepared cifar10",
)
def test_cifar10_is_read_without_tensorflow_and_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "CACHE", tmp_path)
    folder = Path(os.environ["TFDS_DATA_DIR"])
    first = data.load("cifar10", folder)
    assert first.train.x.shape == (45_000, 32, 32, 3) and first.test.x.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(first.test.y)) == {1000}
    assert first.labels[3] == "cat"
    # The first test image of the Python release is a cat; its first pixel is known.
    assert first.labels[first.test.y[0]] in first.labels
    data.load.cache_clear()
    start = time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(tfds, "prepared", None)  # TFDS is not asked again
        second = data.load("cifar10", folder)
    assert second.fingerprint == first.fingerprint
    assert time.perf_counter() - start < 10
    # Pixels and labels as TFDS itself decodes them.
    example = next(tfds.examples(tfds.prepared("cifar10", folder), "test"))
    np.testing.assert_array_equal(first.test.x[0], example["image"])
    assert first.test.y[0] == example["label"]


def test_a_truncated_record_is_told(tmp_path):
    (tmp_path / "file").write_bytes((5).to_bytes(8, "little") + b"crc!" + b"hel")
    with pytest.raises(RecipeError, match="in the middle of a record"):
        list(tfds._records(tmp_path / "file"))


def test_absent_dataset_without_network_names_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_network", lambda: False)
    start = time.perf_counter()
    with pytest.raises(RecipeError) as error:
        data.load("mnist", tmp_path)
    assert time.perf_counter() - start < 20
    assert "--data-dir" in str(error.value) and "--dataset shapes" in str(error.value)
    assert "no network" in str(error.value)


def test_absent_dataset_without_tensorflow(tmp_path, monkeypatch):
    def version(name):
        raise tfds.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tfds, "_network", lambda: True)
    monkeypatch.setattr(tfds.metadata, "version", version)
    with pytest.raises(RecipeError, match="TensorFlow, which TFDS needs to download it"):
        data.load("mnist", tmp_path)


def test_unknown_dataset():
    with pytest.raises(RecipeError, match="'shape': did you mean 'shapes'"):
        data.load("shape")


def test_batches_depend_on_seed_and_number_alone(rng):
    split = Split(rng.integers(0, 255, (50, 8, 8, 3), dtype=np.uint8), np.arange(50))
    batches = data.Batches(split, 16, seed=3, augment="crop_flip")
    assert batches.steps_per_epoch == 3
    assert not np.array_equal(batches[1][1], batches[4][1])  # the same place in the next epoch
    again = data.Batches(split, 16, seed=3, augment="crop_flip")
    for later, sooner in zip(again[4], batches[4], strict=True):  # without what comes before
        np.testing.assert_array_equal(later, sooner)
    seen = np.concatenate([data.Batches(split, 10, seed=0)[i][1] for i in range(5)])
    assert sorted(seen) == list(range(50))
    assert not np.array_equal(data.Batches(split, 16, seed=4)[0][1], data.Batches(split, 16, seed=3)[0][1])
    assert again.fingerprint == batches.fingerprint != data.Batches(split, 16, seed=4).fingerprint


def test_parts_of_a_batch_are_the_batch(rng):
    """Order and augmentation are drawn for examples, not for batches: so gradients can be accumulated."""
    split = Split(rng.integers(0, 255, (50, 8, 8, 3), dtype=np.uint8), np.arange(50))
    whole = data.Batches(split, 16, seed=3, augment="crop_flip")
    parts = data.Batches(split, 16, seed=3, augment="crop_flip", accumulate=4)
    assert parts.steps_per_epoch == 12 and parts.batch_size == 4
    for step in (0, 2, 3):
        for number in range(2):
            joined = np.concatenate([parts[4 * step + part][number] for part in range(4)])
            np.testing.assert_array_equal(joined, whole[step][number])
    with pytest.raises(RecipeError, match="--accumulate 3 does not divide"):
        data.Batches(split, 16, seed=3, accumulate=3)


def test_crops_and_mirror_images_are_what_they_say(rng):
    from recipes.engine.data.batches import cropped_and_flipped

    image = rng.integers(1, 255, (1, 6, 6, 1), dtype=np.uint8)
    padded = np.pad(image[0], ((4, 4), (4, 4), (0, 0)))
    possible = {
        crop.tobytes()
        for top in range(9)
        for left in range(9)
        for crop in (
            np.ascontiguousarray(padded[top : top + 6, left : left + 6]),
            np.ascontiguousarray(padded[top : top + 6, left : left + 6][:, ::-1]),
        )
    }
    corners = rng.integers(0, 9, (2, 400))
    results = cropped_and_flipped(np.repeat(image, 400, axis=0), *corners, rng.random(400) < 0.5)
    drawn = {result.tobytes() for result in results}
    assert drawn <= possible and len(drawn) > 100


def test_batches_cover_an_epoch_once_and_depend_on_the_seed():
    split = data.Split(np.arange(10), np.arange(10))
    batches = data.Batches(split, 5, seed=0)
    once = np.concatenate([batches[0][0], batches[1][0]])
    np.testing.assert_array_equal(np.sort(once), np.arange(10))
    np.testing.assert_array_equal(once, np.concatenate([data.Batches(split, 5, 0)[i][0] for i in (0, 1)]))
    assert not np.array_equal(once, np.concatenate([batches[2][0], batches[3][0]]))
    assert not np.array_equal(once, np.concatenate([data.Batches(split, 5, 1)[i][0] for i in (0, 1)]))
    assert data.Batches(split, 4, 0).steps_per_epoch == 2  # the incomplete third is left out
