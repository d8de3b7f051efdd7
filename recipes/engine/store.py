"""MLflow stores: opening them, and the calls that a run makes, in plain values.

A run imports MLflow through `Store` alone, so that another process can make its calls (`engine.recorder`).
Everything goes through a client and a run's identifier, never through MLflow's current run, so that several
runs can be open in one process and a sweep's workers can write to one store.
"""

import contextlib
import functools
import json
import logging
import os
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.engine.errors import RecipeError, usage_error
from recipes.engine.outage import UNSENT, Away, is_away, probe

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT = "sqlite:///mlruns/mlflow.db"
METRICS_PER_CALL = 900  # MLflow's own limit for one log_batch is 1,000 entities, 100 of them tags

_experiments: dict[tuple[str, str], str] = {}  # identifiers, by store and name

Point = tuple[str, float, int, int]  # metric, value, milliseconds since 1970, optimizer step


class Refused(RecipeError):
    """MLflow's words for what the store does not take; `named` makes a sentence of them."""


class Unanswered(Away):
    """MLflow's words for a store that is away; `named` makes a sentence of them."""


@dataclass(frozen=True)
class Recorded:
    """What a store has of a run: its state, the experiment's name, parameters and tags."""

    status: str
    experiment: str
    params: dict[str, str]
    tags: dict[str, str]


class Store:
    """The calls that runs make.

    Args:
        uri: any MLflow tracking URI, as `absolute` gives it.

    Raises:
        Away: the store does not answer, also not later than this.
        RecipeError: it cannot be opened, or, from a call, does not take what it is given.
    """

    def __init__(self, uri: str) -> None:
        self.client, self.uri = connect(uri)

    def start(
        self, experiment: str, run_name: str, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> tuple[str, list[str]]:
        """Make a run; its identifier, and what was delivered before, a sentence each."""
        from mlflow.entities import Param

        with refusals():
            delivered = deliver(self.client)
            experiment_id = known_experiment(self.client, self.uri, experiment)
            run = self.client.create_run(experiment_id, run_name=run_name, tags=tags)
            self.client.log_batch(run.info.run_id, params=[Param(*pair) for pair in params.items()])
        return run.info.run_id, delivered

    def look_up(self, run_id: str) -> Recorded:
        """What is known of a run."""
        found = find(self.client, self.uri, run_id)
        with refusals():
            experiment = self.client.get_experiment(found.info.experiment_id).name
        return Recorded(found.info.status, experiment, found.data.params, found.data.tags)

    def reopen(
        self, run_id: str, tags: Mapping[str, str]
    ) -> tuple[dict[str, list[tuple[int, float]]], list[str]]:
        """Have a run be RUNNING again, with these tags; its curves, and what was delivered before."""
        with refusals():
            delivered = deliver(self.client)
            known = self.client.get_run(run_id).data
            history = {
                name: [(point.step, point.value) for point in self.client.get_metric_history(run_id, name)]
                for name in known.metrics
            }
            self.client.update_run(run_id, status="RUNNING")
            _log_batch(self.client, run_id, [], tags)
            if "error" in known.tags:
                self.client.delete_tag(run_id, "error")
        return history, delivered

    def log_batch(self, run_id: str, points: Sequence[Point], tags: Mapping[str, str]) -> None:
        """Add points to curves, and set tags."""
        with refusals():
            _log_batch(self.client, run_id, points, tags)

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        """Store a file."""
        with refusals():
            self.client.log_artifact(run_id, path, folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Store a text as a file."""
        with refusals():
            self.client.log_text(run_id, text, name)

    def set_terminated(self, run_id: str, status: str) -> None:
        """Say how a run ended."""
        with refusals():
            self.client.set_terminated(run_id, status)

    def end_children(self, experiment: str, parent: str) -> int:
        """Mark a parent's children that say RUNNING, though nobody runs them, as KILLED; their number."""
        with refusals():
            running = children(self.uri, experiment, parent, "RUNNING")
            for child in running:
                self.client.set_terminated(child.info.run_id, "KILLED")
        return len(running)


def absolute(uri: str | None) -> str:
    """A tracking URI that means the same in every working directory; None stands for the default."""
    uri = uri or DEFAULT
    prefix = "sqlite:///"
    return prefix + str(Path(uri.removeprefix(prefix)).absolute()) if uri.startswith(prefix) else uri


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
    with named(uri):
        # Not mlflow.set_tracking_uri: it would decide for the whole process and its children.
        from mlflow import MlflowClient

        # After the import, which sets levels of its own.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # What a database does not take is said by the error that is raised; here with two tracebacks more.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            _create_store(Path(uri.removeprefix("sqlite:///")))
        _write_ahead()
        return MlflowClient(tracking_uri=uri), uri


def _create_store(path: Path) -> None:
    """Make an SQLite store at once: MLflow cannot mend one whose tables were left half made."""
    _experiments.clear()  # there may have been another one in this place
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".store-") as folder:
        made, whole = Path(folder, "made.db"), Path(folder, path.name)
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        with (
            contextlib.closing(sqlite3.connect(made)) as source,
            contextlib.closing(sqlite3.connect(whole)) as to,
        ):
            source.backup(to)
            # Who reads does not hold up who writes, and a change is one write to the disk instead of four.
            to.execute("PRAGMA journal_mode=WAL")
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.link(whole, path)


@functools.cache
def _write_ahead() -> None:
    """Have SQLite leave it to the system when changes reach the disk, where its journal lies ahead of them.

    A killed process loses nothing, and a store is whole even after a loss of power, which may cost the last
    moments. Waiting for the disk ten times a run took half of what a run of seconds costs.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def relax(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            if mode == "wal":
                connection.execute("PRAGMA synchronous=NORMAL")


def known_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """As `experiment_of`, asked once a process: it is a tenth of what recording a short trial takes."""
    if (uri, name) not in _experiments:
        _experiments[uri, name] = experiment_of(client, uri, name)
    return _experiments[uri, name]


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


def deliver(client: "MlflowClient") -> list[str]:
    """Send what is kept of runs of this store: their last metrics and tags, and how they ended.

    Returns:
        A sentence a run.
    """
    from mlflow.exceptions import MlflowException

    sentences = []
    for path in sorted(UNSENT.glob("*.json")):
        try:
            client.get_run(path.stem)
            kept = json.loads(path.read_text())
            _log_batch(client, path.stem, kept["metrics"], kept["tags"])
            client.set_terminated(path.stem, kept["status"])
        except (MlflowException, OSError):  # another store's run, a deleted one, or somebody was faster
            continue
        path.unlink(missing_ok=True)
        count = len(kept["metrics"])
        sentences.append(
            f"run {path.stem}: {count} metric values and its end, {kept['status']}, are delivered"
        )
    return sentences


def read(uri: str | None, run_id: str, artifact: str) -> tuple[dict[str, str], str | None]:
    """What another run was told and has stored.

    Args:
        uri: as in `tracking.start`.
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


@contextlib.contextmanager
def named(uri: str) -> Iterator[None]:
    """Within, errors of a store say which one it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RecipeError) and not isinstance(error, (Refused, Unanswered)):
            raise
        kind = Away if is_away(error) else RecipeError
        raise kind(f"the tracking store {uri} cannot be used: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
    return (lines or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Within, MLflow's errors become ours, which another process can be told."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise (Unanswered if is_away(error) else Refused)(first_line(error)) from error


def _log_batch(client: "MlflowClient", run_id: str, points: Sequence[Point], tags: Mapping[str, str]) -> None:
    """Send points and tags, in as few calls as MLflow's limits allow."""
    from mlflow.entities import Metric, RunTag

    told = [RunTag(*tag) for tag in tags.items()]
    for first in range(0, max(1, len(points)), METRICS_PER_CALL):
        batch = [Metric(*point) for point in points[first : first + METRICS_PER_CALL]]
        client.log_batch(run_id, metrics=batch, tags=told)
        told = []
