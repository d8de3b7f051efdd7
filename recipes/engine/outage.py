"""A tracking store that does not answer: waiting for it, and keeping what it did not take."""

import os
import socket
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from recipes.engine import interruption
from recipes.engine.errors import RecipeError

T = TypeVar("T")

UNSENT = Path("mlruns/unsent")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between questions to a store that is away
_given_up: set[str] = set()  # stores that this process waited for in vain: it does not wait again


class Away(RecipeError):
    """The store does not answer.

    Args:
        message: the sentence.
        kept: the file that has what the store did not take.
    """

    def __init__(self, message: str, kept: Path | None = None) -> None:
        super().__init__(message)
        self.kept = kept


def insist(uri: str, patience: float, call: Callable[[], T]) -> T:
    """Repeat a call until the store answers it; a process that waited once in vain does not wait again.

    Args:
        uri: the store.
        patience: seconds after which the error passes.
        call: what to do; it may have been half done before.
    """
    end = time.monotonic() + (0.0 if uri in _given_up else patience)
    pause, waited = FIRST_PAUSE, False
    while True:
        try:
            if uri.startswith("http"):
                probe(uri)  # sooner found out than by the call, which MLflow repeats
            with interruption.postponed():
                result = call()
        except Exception as error:
            if not is_away(error):
                raise
            if time.monotonic() + pause > end:
                if waited:
                    _given_up.add(uri)
                raise
        else:
            _given_up.discard(uri)
            return result
        time.sleep(pause)
        pause, waited = min(2 * pause, LONGEST_PAUSE), True


def is_away(error: Exception) -> bool:
    """Whether a later call may do better: the store gave no answer, or one that blames itself."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() >= 500
    return isinstance(error, (OSError, Away))


def probe(uri: str) -> None:
    """Find out within seconds that nobody listens at a URI, or that its folder cannot be written.

    Raises:
        Away: no server answers.
        RecipeError: the folder of a local store cannot be made or written.
    """
    parts = urllib.parse.urlparse(uri)
    if parts.scheme in ("http", "https"):
        address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        try:
            socket.create_connection(address, timeout=5).close()
        except OSError as error:
            raise Away(
                f"no tracking server answers at {uri} ({error}): start it with 'mlflow server', "
                "or leave --tracking-uri and MLFLOW_TRACKING_URI away to write to mlruns/"
            ) from None
    elif parts.scheme.startswith("sqlite"):
        folder = Path(parts.path[1:]).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot make the tracking store's folder {folder}: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise RecipeError(
                f"cannot write to the tracking store's folder {folder}: choose another --tracking-uri"
            )


def keep(run_id: str, text: str) -> Path:
    """Write what a store did not take of a run to `mlruns/unsent/RUN.json`; its path."""
    UNSENT.mkdir(parents=True, exist_ok=True)
    path = UNSENT / f"{run_id}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)  # a killed process leaves no half file
    return path
