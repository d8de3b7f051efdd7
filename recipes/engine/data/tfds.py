"""TensorFlow Datasets, read without TensorFlow.

TFDS' metadata and NumPy decoding work without it; only its reader and its preparation need it. So prepared
records are read here by hand, on every backend alike, and a download runs in a process of its own.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from recipes.engine.backend import CACHE
from recipes.engine.errors import RecipeError

# Image classification sets that fit in memory. Each has the features `image` and `label`.
IMAGES = ("cifar10", "cifar100", "emnist", "fashion_mnist", "kmnist", "mnist", "svhn_cropped")

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def images(name: str, data_dir: Path | None) -> tuple[Arrays, list[str]]:
    """Images and labels of the splits `train` and `test`, decoded once and cached.

    Args:
        name: a name of TFDS' catalogue.
        data_dir: folder of prepared datasets; None for TFDS' own.

    Returns:
        Arrays by split, images uint8 and labels int32, in the order of the records; the labels' names.

    Raises:
        RecipeError: the dataset is neither prepared nor downloadable.
    """
    known = _description(name, data_dir)
    splits = {}
    for split in ("train", "test"):
        files = [Path(path) for path in known["files"][split]]
        stamp = "-".join(f"{path.stat().st_size}.{path.stat().st_mtime_ns}" for path in files)
        cached = CACHE.expanduser() / name / known["version"] / f"{split}-{_digest(stamp)}"
        splits[split] = _read_cached(cached) or _decode(prepared(name, data_dir).info, files, cached)
    return splits, known["labels"]


def _description(name: str, data_dir: Path | None) -> dict[str, Any]:
    """What TFDS knows of a prepared dataset; remembered, as importing TFDS takes a second.

    A version that is prepared later changes the time of the dataset's folder, and so the memory's name.
    """
    memory = None
    with contextlib.suppress(OSError, ValueError, TypeError):
        folder = (data_dir / name).absolute()
        memory = CACHE.expanduser() / name / f"{_digest(f'{folder} {folder.stat().st_mtime_ns}')}.json"
        known = json.loads(memory.read_text())
        if all(Path(path).exists() for paths in known["files"].values() for path in paths):
            return known
    info = prepared(name, data_dir).info
    known = {
        "version": str(info.version),
        "labels": list(info.features["label"].names),
        "files": {split: [str(path) for path in info.splits[split].filepaths] for split in ("train", "test")},
    }
    if memory is not None:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            partial = memory.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(known))
            partial.replace(memory)
    return known


def prepared(name: str, data_dir: Path | None, instead: tuple[str, ...] = ("shapes", "digits")) -> Any:
    """The TFDS builder of a dataset that lies ready in `data_dir`, downloaded if it must and can be.

    Where it cannot, the error names the built-in datasets that can be taken `instead`.
    """
    builder = _builder(name, data_dir)
    if builder.info.splits:
        return builder
    _download(name, data_dir, instead)
    return _builder(name, data_dir)


def examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split, decoded, in the order of the records."""
    for path in builder.info.splits[split].filepaths:
        for record in _records(Path(path)):
            yield builder.info.features.deserialize_example_np(record)


def _builder(name: str, data_dir: Path | None) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.utils import gcs_utils

        # Only what lies in the folder counts: asking the network about metadata takes minutes without one.
        gcs_utils._is_gcs_disabled = True
        return tfds.builder(name, data_dir=str(data_dir) if data_dir else None)


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its CRC (4), data, its CRC (4)."""
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0]
            record = file.read(length)
            if len(record) != length or len(file.read(4)) != 4:
                raise RecipeError(
                    f"{path} ends in the middle of a record: delete the dataset and prepare it again"
                )
            yield record


def _decode(info: Any, files: list[Path], cached: Path) -> tuple[np.ndarray, np.ndarray]:
    records = [record for path in files for record in _records(path)]
    pixels, labels = None, np.empty(len(records), np.int32)

    def decode(index: int) -> None:
        nonlocal pixels
        example = info.features.deserialize_example_np(records[index])
        if pixels is None:
            pixels = np.empty((len(records), *example["image"].shape), np.uint8)
        pixels[index] = example["image"]
        labels[index] = example["label"]

    decode(0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PNG decoding releases Python's lock
        list(pool.map(decode, range(1, len(records)), chunksize=256))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        for array, kind in ((pixels, "x"), (labels, "y")):
            partial = cached.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, array)
            partial.replace(cached.with_suffix(f".{kind}.npy"))  # atomic: a killed run leaves no half file
    except OSError as error:
        print(f"warning: decoded images are not cached in {cached.parent}: {error.strerror}", file=sys.stderr)
    return pixels, labels


def _read_cached(cached: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        return tuple(np.load(cached.with_suffix(f".{kind}.npy")) for kind in "xy")
    except (OSError, ValueError):
        return None


def _digest(stamp: str) -> str:
    return hashlib.blake2b(stamp.encode(), digest_size=6).hexdigest()


def _download(name: str, data_dir: Path | None, instead: tuple[str, ...]) -> None:
    where = data_dir or Path("~/tensorflow_datasets").expanduser()
    ways_out = (
        f"point --data-dir (or TFDS_DATA_DIR) at a folder that holds {name} prepared by TensorFlow Datasets, "
        f"or take a built-in set: {' or '.join(f'--dataset {other}' for other in instead)}"
    )
    if not _network():
        raise RecipeError(
            f"dataset '{name}' is not in {where} and there is no network to download it: {ways_out}"
        )
    try:
        metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        raise RecipeError(
            f"dataset '{name}' is not in {where}, and TensorFlow, which TFDS needs to download it, "
            f"is not installed: {ways_out}"
        ) from None
    print(f"downloading {name} to {where} (once)", flush=True)
    code = (
        "import sys, tensorflow_datasets as tfds;"
        "tfds.builder(sys.argv[1], data_dir=sys.argv[2]).download_and_prepare()"
    )
    done = subprocess.run([sys.executable, "-c", code, name, str(where)], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RecipeError(f"dataset '{name}' could not be downloaded ({reason}): {ways_out}")


def _network() -> bool:
    """Whether the host that TFDS downloads from can be reached, found out within seconds."""
    try:
        socket.create_connection(("storage.googleapis.com", 443), timeout=3).close()
    except OSError:
        return False
    return True
