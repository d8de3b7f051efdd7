"""MLflow: where runs are written, and what a recipe writes to.

Everything goes through a client and a run's identifier, never through MLflow's current run, so that several
runs can be open in one process and a sweep's workers can write to one store.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.engine.errors import RecipeError, usage_error
from recipes.engine.outage import UNSENT, Away, insist, is_away, keep, probe

if TYPE_CHECKING:
    import keras
    import numpy as np
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

STORE = "sqlite:///mlruns/mlflow.db"
ARTIFACTS = Path("mlruns/artifacts")
METRICS_PER_CALL = 900  # MLflow's own limit for one log_batch is 1,000 entities, 100 of them tags
PAUSE = 9  # a call that takes t is followed by none for 9 t: steps of milliseconds are not held up by calls
AT_LEAST = 5.0  # seconds: nobody looks more often, and a run that is over before sends all at once


class Run:
    """An open run: metrics, figures, files and models go in; it ends once, in a true state.

    A tracking server that stops answering does not stop the run: its metrics and tags wait, and are sent
    with the next ones. If the server is still away at the end, and after the run's patience, they are written
    to `mlruns/unsent/RUN.json`, from where `deliver` sends them.

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
        client: "MlflowClient",
        run_id: str,
        experiment: str,
        uri: str,
        stored: Mapping[str, list[tuple[int, float]]] | None = None,
        patience: float = 0.0,
    ) -> None:
        self._client = client
        self._unsent: list[tuple[str, float, int, int]] = []
        self._tags: dict[str, str] = {}
        self._pause = AT_LEAST
        self._next_send = time.perf_counter() + self._pause
        self._stored = stored or {}
        self.id = run_id
        self.experiment = experiment
        self.uri = uri
        self.patience = patience
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.last_step = 0
        self.checkpoints: Path | None = None
        self.only_training = False
        self.watch: Callable[[Run, dict[str, float]], None] | None = None
        self.save: Callable[[], Path | None] | None = None

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

    def rewind(self, step: int) -> None:
        """Begin again at an optimizer step: `history` holds what a resumed run had recorded up to there."""
        self.last_step = max(step, 0)
        self.history = {
            name: [point for point in points if point[0] <= step] for name, points in self._stored.items()
        }

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; they are sent at once, or with the next metrics."""
        self._tags |= {name: str(value) for name, value in values.items()}
        self._flush_if_due()

    def figure(self, name: str, figure: "Figure | Callable[[], Figure]") -> None:
        """Store a matplotlib figure as `figures/NAME.png`, or what a function draws.

        Nothing is drawn or stored for a run that ends with its training.
        """
        if self.only_training:
            return
        figure = figure() if callable(figure) else figure
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.png")
            figure.savefig(path, dpi=110, bbox_inches="tight")
            self.file(path, "figures")

    def file(self, path: Path, folder: str | None = None) -> None:
        """Store a file as an artifact."""
        self._attempt(
            f"artifact {path.name}",
            lambda: self._client.log_artifact(self.id, str(path), folder),
            self.patience,
        )

    def text(self, name: str, text: str) -> None:
        """Store a text as an artifact."""
        self._attempt(f"artifact {name}", lambda: self._client.log_text(self.id, text, name), self.patience)

    def model(self, model: "keras.Model", example: "np.ndarray", name: str = "model") -> None:
        """Store a Keras model so that `models.load` and `mlflow.keras.load_model` read it on any backend."""
        from recipes.engine import models

        self._attempt(
            f"model {name}",
            lambda: models.log(self._client, self.id, model, name, example, self.last_step),
            self.patience,
        )

    def end(self, status: str, error: str | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED.

        Raises:
            Away: the store did not answer; what it did not take is kept in a file.
        """
        from mlflow.exceptions import MlflowException

        if error:
            self._tags["error"] = error

        def close() -> None:
            self._send()
            self._client.set_terminated(self.id, status)

        try:
            insist(self.uri, self.patience, close)
        except (MlflowException, OSError, Away) as reason:
            left = {"status": status, "tags": self._tags, "metrics": self._unsent}
            path = keep(self.id, json.dumps(left))
            raise Away(
                f"the tracking server {self.uri} did not take the end of run {self.id} "
                f"({_first_line(reason)}): {len(self._unsent)} metric values and the state {status} are kept "
                f"in {path}, and the next run that starts here sends them",
                path,
            ) from reason

    def _send(self) -> None:
        from mlflow.entities import Metric, RunTag

        while self._tags or self._unsent:
            batch = self._unsent[:METRICS_PER_CALL]
            self._client.log_batch(
                self.id,
                metrics=[Metric(*values) for values in batch],
                tags=[RunTag(*tag) for tag in self._tags.items()],
            )
            self._tags = {}
            del self._unsent[: len(batch)]

    def _attempt(self, what: str, call: Callable[[], object], patience: float = 0.0) -> None:
        """Let the run go on when the store does not take something."""
        from mlflow.exceptions import MlflowException

        try:
            insist(self.uri, patience, call)
        except (MlflowException, OSError, Away) as error:
            print(
                f"warning: tracking server {self.uri}: {what} not stored ({_first_line(error)})",
                file=sys.stderr,
            )


def deliver(client: "MlflowClient", uri: str) -> None:
    """Send what is kept of runs of this store: their last metrics and tags, and how they ended."""
    from mlflow.exceptions import MlflowException

    for path in sorted(UNSENT.glob("*.json")):
        run = Run(client, path.stem, "", uri)
        try:
            client.get_run(run.id)
            kept = json.loads(path.read_text())
            run._tags, run._unsent = kept["tags"], [tuple(values) for values in kept["metrics"]]
            count = len(run._unsent)
            run._send()
            client.set_terminated(run.id, kept["status"])
        except (MlflowException, OSError):  # another store's run, a deleted one, or somebody was faster
            continue
        path.unlink(missing_ok=True)
        print(f"run {run.id}: {count} metric values and its end, {kept['status']}, are delivered", flush=True)


def start(
    uri: str | None,
    experiment: str,
    run_name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    patience: float = 0.0,
) -> Run:
    """Open a run.

    Args:
        uri: any MLflow tracking URI; None for `sqlite:///mlruns/mlflow.db`, made on first use.
        experiment: the experiment's name, made on first use.
        run_name: what the UI calls the run.
        params: recorded as parameters.
        tags: recorded as tags.
        patience: seconds to wait for a store that does not answer, now and at the run's end.

    Returns:
        The run, in state RUNNING.

    Raises:
        RecipeError: the store cannot be reached or opened.
    """
    from mlflow.entities import Param

    uri = absolute(uri)

    def begin() -> Run:
        client, _ = connect(uri)
        with _store_errors(uri):
            deliver(client, uri)
            experiment_id = experiment_of(client, uri, experiment)
            noted = {**tags, "mlflow.note.content": run_name}
            run_id = client.create_run(experiment_id, run_name=run_name, tags=noted).info.run_id
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])
        return Run(client, run_id, experiment, uri, patience=patience)

    return insist(uri, patience, begin)


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
    client, uri = connect(uri)
    deliver(client, uri)
    found = find(client, uri, run_id)
    tags = found.data.tags
    if found.info.status == "FINISHED":
        raise usage_error(f"run {run_id} is finished: there is nothing to resume")
    if found.info.status == "RUNNING" and _alive(tags.get("host"), tags.get("process")):
        raise usage_error(f"run {run_id} is still running, as process {tags['process']}: stop it first")
    with _store_errors(uri):
        experiment = client.get_experiment(found.info.experiment_id).name
        stored = {
            name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
            for name in found.data.metrics
        }
        client.update_run(run_id, status="RUNNING")
        for name, value in process_tags().items():
            client.set_tag(run_id, name, value)
        if "error" in tags:
            client.delete_tag(run_id, "error")
    return Run(client, run_id, experiment, uri, stored)


def find(client: "MlflowClient", uri: str, run_id: str) -> Any:
    """A run of the store.

    Raises:
        RecipeError: there is no such run.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException:
        raise usage_error(
            f"there is no run '{run_id}' in {uri}: the identifier is in the first line that a run prints, "
            "and --tracking-uri names another store"
        ) from None


def read(uri: str | None, run_id: str, artifact: str) -> tuple[dict[str, str], str | None]:
    """What another run was told and has stored.

    Args:
        uri: as in `start`.
        run_id: the run.
        artifact: the path of a text that it stored.

    Returns:
        Its parameters, and the text; None if it has none of that name.

    Raises:
        RecipeError: there is no such run.
    """
    from mlflow.exceptions import MlflowException

    client, uri = connect(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    parameters = find(client, uri, run_id).data.params
    with tempfile.TemporaryDirectory() as folder:
        try:
            return parameters, Path(client.download_artifacts(run_id, artifact, folder)).read_text()
        except (MlflowException, OSError):
            return parameters, None


def process_tags() -> dict[str, str]:
    """What tells whether a run that says RUNNING is."""
    return {"host": socket.gethostname(), "process": str(os.getpid())}


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


def connect(uri: str | None) -> tuple["MlflowClient", str]:
    """A client for a tracking URI, and the URI in full; a dead server is found out within seconds."""
    uri = absolute(uri)
    probe(uri)
    # A server that goes away later is met by Run's own patience, not by minutes of silent retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # A server's client prints two lines with addresses for every run that ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A run reports to its store and to nobody else; MLflow reads this when it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with _store_errors(uri):
        # Not mlflow.set_tracking_uri: it would decide for the whole process and its children.
        from mlflow import MlflowClient

        # After the import, which sets levels of its own.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            _create_store(Path(uri.removeprefix("sqlite:///")))
        return MlflowClient(tracking_uri=uri), uri


def _create_store(path: Path) -> None:
    """Make an SQLite store at once: MLflow cannot mend one whose tables were left half made."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".store-") as folder:
        made = Path(folder, path.name)
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.link(made, path)


def experiment_of(client: "MlflowClient", uri: str, name: str) -> str:
    """The identifier of an experiment, made if it is new.

    In a local store its artifacts lie under mlruns/artifacts; a server decides for itself.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise RecipeError(
                f"experiment '{name}' is deleted in {uri}: restore it, or choose another --experiment"
            )
        return found.experiment_id
    location = None
    if uri.startswith("sqlite"):
        store = Path(urllib.parse.urlparse(uri).path[1:]).parent
        location = (store / "artifacts" / name).resolve().as_uri()
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:
        # Somebody else made it between the look and the making.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


@contextlib.contextmanager
def _store_errors(uri: str):  # noqa: ANN202 - a generator behind contextmanager
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        kind = Away if is_away(error) else RecipeError
        raise kind(f"the tracking store {uri} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def absolute(uri: str | None) -> str:
    """A tracking URI that means the same in every working directory."""
    uri = uri or STORE
    prefix = "sqlite:///"
    return prefix + str(Path(uri.removeprefix(prefix)).absolute()) if uri.startswith(prefix) else uri


def end_children(uri: str, experiment: str, parent: str) -> int:
    """Mark a parent's children that still say RUNNING, though nobody runs them, as KILLED; their number."""
    client, _ = connect(uri)
    running = children(uri, experiment, parent, "RUNNING")
    for child in running:
        client.set_terminated(child.info.run_id, "KILLED")
    return len(running)


def children(uri: str, experiment: str, parent: str, status: str | None = None) -> list[Any]:
    """MLflow's records of a parent's children, of those in a state or of all, however many there are."""
    client, uri = connect(uri)
    experiments = [experiment_of(client, uri, experiment)]
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    if status is not None:
        query += f" and attributes.status = '{status}'"
    found, token = [], None
    while True:
        page = client.search_runs(experiments, query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
