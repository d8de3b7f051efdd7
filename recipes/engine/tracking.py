"""What a recipe writes to: runs, from their beginning to a true end."""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.engine import recorder
from recipes.engine.errors import RecipeError, usage_error
from recipes.engine.outage import UNSENT, Away, insist, keep
from recipes.engine.store import Point, Store, absolute, connect, first_line, named, refusals

if TYPE_CHECKING:
    import keras
    import numpy as np
    from matplotlib.figure import Figure

PAUSE = 9  # a call that takes t is followed by none for 9 t: steps of milliseconds are not held up by calls
AT_LEAST = 5.0  # seconds: nobody looks more often, and a run that is over before sends all at once
LAST_CALL = 60.0  # seconds that the last call for a killed run may take


class Run:
    """An open run: metrics, figures, files and models go in; it ends once, in a true state.

    A tracking server that stops answering does not stop the run: its metrics and tags wait, and are sent
    with the next ones. If the server is still away at the end, and after the run's patience, they are written
    to `mlruns/unsent/RUN.json`, from where `deliver` sends them.

    Args:
        uri: where it is.
        experiment: of which experiment.
        open_it: opens it when it is first needed; the store, and the run's identifier.
        stored: the curves of a run that goes on.
        patience: as below.

    Attributes:
        patience: seconds to wait for a store that does not answer where there is no later: with artifacts,
            and at the end.
        only_training: the run is to end after its training, without figures: it is there to be compared.
        watch: called after every epoch with the run and its metrics.
        checkpoints: folder of the run's checkpoints; None while, or where, it writes none.
        save: writes a checkpoint there now; its file, or None if it could not be written.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        open_it: Callable[[], tuple[Store | recorder.Recorder, str]],
        stored: Mapping[str, list[tuple[int, float]]] | None = None,
        patience: float = 0.0,
    ) -> None:
        self._open_it = open_it
        self._opened: tuple[Store | recorder.Recorder, str] | None = None
        self._unsent: list[Point] = []
        self._tags: dict[str, Any] = {}
        self._pause = AT_LEAST
        self._next_send = time.perf_counter() + self._pause
        self._stored = stored or {}
        self.experiment = experiment
        self.uri = uri
        self.patience = patience
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.last_step = 0
        self.checkpoints: Path | None = None
        self.only_training = False
        self.watch: Callable[[Run, dict[str, float]], None] | None = None
        self.save: Callable[[], Path | None] | None = None

    @property
    def id(self) -> str:
        """The run's identifier.

        Raises:
            RecipeError: the store cannot be reached or opened.
        """
        return self._open()[1]

    def open(self) -> None:
        """Wait until the run is open."""
        self._open()

    def is_open(self) -> bool:
        """Whether the run is open by now."""
        if self._opened is None and recorder.ready(self.uri):
            self._open()
        return self._opened is not None

    def _open(self) -> tuple[Store | recorder.Recorder, str]:
        if self._opened is None:
            self._opened = self._open_it()
        return self._opened

    @property
    def _store(self) -> Store | recorder.Recorder:
        return self._open()[0]

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record metrics at an optimizer step; they are sent at once, or with the next ones."""
        now = int(time.time() * 1000)
        self.last_step = max(self.last_step, step)
        for name, value in values.items():
            points = self.history.setdefault(name, [])
            if (step, float(value)) in points[-1:]:  # the last of a curve is often a final metric too
                continue
            points.append((step, float(value)))
            # A resumed run comes past points that were recorded before it was killed.
            if all(step != known for known, _ in self._stored.get(name, ())):
                self._unsent.append((name, float(value), now, step))
        self._flush_if_due()

    def flush(self) -> None:
        """Send what was recorded."""
        begin = time.perf_counter()
        self._attempt("metrics" if self._unsent else "tags", self._send)
        now = time.perf_counter()
        self._next_send = now + max(self._pause, PAUSE * (now - begin))

    def take_turns(self, runs: int) -> None:
        """Of so many runs at once in this process: together they send as often as one alone would."""
        self._pause = AT_LEAST * runs
        self._next_send = time.perf_counter() + self._pause

    def _flush_if_due(self) -> None:
        if time.perf_counter() >= self._next_send:
            self.flush()

    def rewind(self, step: int, prefix: str = "") -> None:
        """Begin again at an optimizer step: `history` holds what a resumed run had recorded up to there.

        With a `prefix` this is done to the metrics whose names begin with it, and to no others.
        """
        self.last_step = max(self.last_step, step)
        self.history |= {
            name: [point for point in points if point[0] <= step]
            for name, points in self._stored.items()
            if name.startswith(prefix)
        }

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; they are sent at once, or with the next metrics.

        A value that is a function is asked for then: no step waits for what takes time to know.
        """
        self._tags |= values
        self._flush_if_due()

    def figure(self, name: str, figure: "Figure | Callable[[], Figure]") -> None:
        """Store a matplotlib figure as `figures/NAME.png`, or what a function draws.

        Nothing is drawn or stored for a run that ends with its training.
        """
        if self.only_training:
            return
        self._open()  # a run that cannot be opened has nothing to draw
        figure = figure() if callable(figure) else figure
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.png")
            figure.savefig(path, dpi=110, bbox_inches="tight")
            self.file(path, "figures")

    def file(self, path: Path, folder: str | None = None) -> None:
        """Store a file as an artifact."""
        self._attempt(
            f"artifact {path.name}",
            lambda: self._store.log_artifact(self.id, str(path), folder),
            self.patience,
        )

    def text(self, name: str, text: str) -> None:
        """Store a text as an artifact."""
        self._attempt(f"artifact {name}", lambda: self._store.log_text(self.id, text, name), self.patience)

    def model(self, model: "keras.Model", example: "np.ndarray", name: str = "model") -> None:
        """Store a Keras model so that `models.load` and `mlflow.keras.load_model` read it on any backend."""
        from recipes.engine import models

        def log() -> None:
            with refusals():
                models.log(connect(self.uri)[0], self.id, model, name, example, self.last_step)

        self._attempt(f"model {name}", log, self.patience)

    def end(self, status: str, error: str | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED.

        Raises:
            Away: the store did not answer; what it did not take is kept in a file.
        """
        run_id = self.id
        if error:
            self._tags["error"] = error

        def close() -> None:
            self._send()
            self._store.set_terminated(run_id, status)

        try:
            insist(self.uri, self.patience, close)
        except (RecipeError, OSError) as reason:
            left = {"status": status, "tags": self._tags, "metrics": self._unsent}
            refused = f"the tracking server {self.uri} did not take the end of run {run_id}"
            what = f"{len(self._unsent)} metric values and the state {status}"
            try:
                path = keep(run_id, json.dumps(left))
            except OSError as error:
                raise Away(
                    f"{refused} ({first_line(reason)}), nor could {what} be kept in {UNSENT} "
                    f"({error.strerror}): they are lost"
                ) from reason
            raise Away(
                f"{refused} ({first_line(reason)}): {what} are kept "
                f"in {path}, and the next run that starts here sends them",
                path,
            ) from reason

    def _send(self) -> None:
        self._tags = {name: str(tag() if callable(tag) else tag) for name, tag in self._tags.items()}
        if self._tags or self._unsent:
            self._store.log_batch(self.id, self._unsent, self._tags)
            self._tags, self._unsent = {}, []

    def _attempt(self, what: str, call: Callable[[], object], patience: float = 0.0) -> None:
        """Let the run go on when the store does not take something."""
        self._open()  # without which it does not go on
        try:
            insist(self.uri, patience, call)
        except (RecipeError, OSError) as error:
            print(
                f"warning: tracking server {self.uri}: {what} not stored ({first_line(error)})",
                file=sys.stderr,
            )


def start(
    uri: str | None,
    experiment: str,
    run_name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    patience: float = 0.0,
    opened: Callable[[str], None] = lambda run_id: None,
) -> Run:
    """Open a run.

    Where a process beside this one records it, that process opens it, and is waited for when the run's
    identifier is first needed.

    Args:
        uri: any MLflow tracking URI; None for `sqlite:///mlruns/mlflow.db`, made on first use.
        experiment: the experiment's name, made on first use.
        run_name: what the UI calls the run.
        params: recorded as parameters.
        tags: recorded as tags.
        patience: seconds to wait for a store that does not answer, now and at the run's end.
        opened: told the run's identifier when it is open.

    Returns:
        The run, in state RUNNING.

    Raises:
        RecipeError: the store cannot be reached or opened.
    """
    uri = absolute(uri)
    words = {name: str(value) for name, value in params.items()}
    noted = {**tags, "mlflow.note.content": run_name}

    request = (experiment, run_name, words, noted)

    def ask() -> tuple[Store | recorder.Recorder, str, list[str]]:
        store = recorder.store(uri)
        with named(uri):
            return store, *store.start(*request)

    def open_it() -> tuple[Store | recorder.Recorder, str]:
        store, run_id, delivered = insist(uri, patience, ask)
        _tell(delivered)
        opened(run_id)
        return store, run_id

    run = Run(uri, experiment, open_it, patience=patience)
    if not recorder.ahead(uri, "start", *request):
        run._open()
    return run


def resume(uri: str | None, run_id: str) -> Run:
    """Open a run again that was killed or failed: what it does now goes on its curves.

    Args:
        uri: as in `start`.
        run_id: the run.

    Returns:
        The run, in state RUNNING.

    Raises:
        RecipeError: there is no such run, it is finished, or a process still works on it.
    """
    store = recorder.store(uri)
    found = store.look_up(run_id)
    if found.status == "FINISHED":
        raise usage_error(f"run {run_id} is finished: there is nothing to resume")
    host, process = found.tags.get("host"), found.tags.get("process")
    if found.status == "RUNNING" and _alive(host, process):
        raise usage_error(f"run {run_id} is still running, as process {process}: stop it first")
    if found.tags.get("recorder") != process:
        _wait_for_recorder(host, found.tags.get("recorder"))
    with named(store.uri):
        # The curves are read now: the process that recorded the run may have been at it until now.
        stored, delivered = store.reopen(run_id, process_tags())
    _tell(delivered)
    return Run(store.uri, found.experiment, lambda: (store, run_id), stored)


def _wait_for_recorder(host: str | None, process: str | None) -> None:
    """Let the process end that recorded a run for one that was killed: it has the last call to make."""
    end = time.monotonic() + LAST_CALL
    while _alive(host, process):
        if time.monotonic() > end:
            raise usage_error(f"process {process} still records what this run did before: stop it first")
        time.sleep(0.1)


def _tell(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(sentence, flush=True)


def process_tags() -> dict[str, str]:
    """What tells whether a run that says RUNNING is, and whether it is still being recorded."""
    return {
        "host": socket.gethostname(),
        "process": str(os.getpid()),
        "recorder": str(recorder.process() or os.getpid()),
    }


def _alive(host: str | None, process: str | None) -> bool:
    """Whether a process of this machine runs; one of another machine cannot be asked."""
    if host != socket.gethostname() or not process or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
