"""Checkpoints: all that a run needs to go on, in one file that is either whole or not there.

    mlruns/checkpoints/RUN_ID/step-000000400-1f0c93aa5be7d2e4.npz

A file is written under another name, flushed to the disk and renamed, so that a kill in the middle of writing
leaves the one before it. The name ends with the beginning of the content's SHA-256: a file that was damaged
later is found out when it is read. It is an ordinary .npz: arrays by name, and `facts`, a JSON text.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.engine.errors import RecipeError

Checkpoint = tuple[dict[str, np.ndarray], dict[str, Any]]


def prepare(folder: Path) -> None:
    """Make a run's folder and clear away what a kill left half written.

    Raises:
        RecipeError: nothing can be written there.
    """
    require_writable(folder)
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Make a folder.

    Raises:
        RecipeError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RecipeError(
            f"cannot write checkpoints to {folder} ({error.strerror}): "
            "choose another --checkpoint-dir, or --checkpoint-every 0 for none"
        ) from None


def save(folder: Path, label: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint.

    Args:
        folder: the run's folder.
        label: beginning of the file's name; checkpoints are found by it and sorted by what follows.
        arrays: the state, by name.
        facts: what else to remember; anything JSON can hold.

    Returns:
        The file.

    Raises:
        OSError: the disk is full, or the like; no trace of the file is left, older ones are untouched.
    """
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.array(json.dumps(facts)), **arrays)
    content = buffer.getbuffer()
    path = folder / f"{label}-{_digest(content)}.npz"
    part = folder / f"{path.name}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(folder)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return path


def attempt(
    folder: Path, label: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], of_what: str
) -> Path | None:
    """Write a checkpoint; where that fails, say so and let the run go on.

    Args:
        folder, label, arrays, facts: as for `save`.
        of_what: completes the warning: `at step 500`.

    Returns:
        The file, or None.
    """
    try:
        return save(folder, label, arrays, facts)
    except OSError as error:
        older = any(not path.name.startswith("best-") for path in folder.rglob("*.npz"))
        otherwise = "and could be resumed from the one before" if older else "but cannot be resumed"
        print(
            f"warning: no checkpoint {of_what} ({error.strerror}): the run goes on, {otherwise}",
            file=sys.stderr,
        )
        return None


def newest(folder: Path, label: str) -> Checkpoint | None:
    """The last whole checkpoint whose name begins with `label`; None if there is none.

    A damaged one is left out with a warning, and the one before it is taken.
    """
    paths = sorted(folder.glob(f"{label}-*.npz"))
    while paths:
        path = paths.pop()
        content = path.read_bytes()
        if _digest(content) == path.stem.rsplit("-", 1)[-1]:
            with np.load(io.BytesIO(content)) as file:
                arrays = {name: file[name] for name in file.files}
            return arrays, json.loads(str(arrays.pop("facts")))
        otherwise = ": taking the one before it" if paths else ", and there is none before it"
        print(f"warning: checkpoint {path} is damaged{otherwise}", file=sys.stderr)
    return None


def prune(folder: Path, label: str, keep: int) -> None:
    """Delete all but the last `keep` checkpoints whose names begin with `label`."""
    paths = sorted(folder.glob(f"{label}-*.npz"), key=lambda path: path.stat().st_mtime_ns)
    for path in paths[: max(0, len(paths) - keep)]:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Delete what a finished run does not need: all checkpoints but the best ones, those of its parts too."""
    for path in folder.rglob("*.npz"):
        if not path.name.startswith("best-"):
            path.unlink(missing_ok=True)


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
