"""The machines that a sweep's trials run on: this one, or the nodes of a Ray cluster that is there."""

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from recipes.engine import backend, outage
from recipes.engine.errors import RecipeError, usage_error

T = TypeVar("T")

SOURCE = Path(__file__).parents[1]
PACKAGES = ("layers", "recipes", "tuning")
INSIDE = ""  # the address for a process that is one of the cluster's own


@contextlib.contextmanager
def connected(options: argparse.Namespace, base: dict[str, Any]) -> Iterator[None]:
    """Within, Ray is there, and every node of it can run trials.

    A cluster is sent this project's packages: what is installed there does not count.

    Args:
        options: the sweep's own options.
        base: the recipe's fields that all trials share.

    Raises:
        RecipeError: there is no Ray at the address, or a node lacks what a trial needs.
    """
    if options.address == INSIDE:
        yield
        return
    import ray

    local = options.address == "local"
    shipped = {"py_modules": [str(SOURCE / name) for name in PACKAGES], "excludes": ["__pycache__"]}
    try:
        ray.init(
            address=options.address,
            runtime_env={
                "env_vars": worker_environment(options, base["backend"]),
                **({} if local else shipped),
            },
            # A client's trials are driven from the cluster: there is no other way to see how they go.
            log_to_driver=is_client(options),
            logging_level=logging.ERROR,
            include_dashboard=False if local else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        token = (
            "; is RAY_AUTH_TOKEN the cluster's (`ray get-auth-token` there)?" if is_client(options) else ""
        )
        raise RecipeError(
            f"no Ray cluster at --address {options.address}: {str(error).splitlines()[0]}{token}"
        ) from error
    try:
        _require_room(options)
        if not local:
            _require_ready(options, base)
        yield
    finally:
        ray.shutdown()


def bring_token() -> None:
    """Have Ray's client show the cluster's token: by itself it does so only in this mode.

    To a client without one the cluster does not answer; all that it says is that its time is up. Ray reads
    the mode when it is imported: this has to come before.
    """
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if given or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_client(options: argparse.Namespace) -> bool:
    """Whether the driver is on no node of the cluster, and only talks to it."""
    return options.address.startswith("ray://")


def at_the_head(
    work: Callable[..., T], options: argparse.Namespace, base: dict[str, Any], **arguments: Any
) -> T:
    """Do on the cluster's head what takes `options` and `base`, for a driver that is only a client.

    Args:
        work: a function of this project.
        options: the sweep's own options.
        base: the recipe's fields that all trials share.
        arguments: what else it takes.
    """
    import ray

    inside = argparse.Namespace(**{**vars(options), "address": INSIDE})
    # Once: a head that dies takes the cluster with it.
    remote = ray.remote(num_cpus=0, max_retries=0, resources={"node:__internal_head__": 0.001})(work)
    with connected(options, base):
        try:
            return ray.get(remote.remote(inside, base=base, **arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def worker_environment(options: argparse.Namespace, name: str) -> dict[str, str]:
    """What a worker's environment has before it loads its backend: threads, and its GPU or share of one."""
    environment = {
        **backend.thread_environment(options.cpus_per_trial),
        "KERAS_BACKEND": name,
        # The end of a stopped trial: its run is closed in MLflow.
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    }
    if options.address == "local":
        environment["PYTHONPATH"] = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    if options.gpus_per_trial:
        # JAX takes most of the memory at its start, TensorFlow all of it: neighbours would find none.
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * min(1.0, options.gpus_per_trial):.3f}"
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    else:  # as many trials as cores would crowd on one, which Ray leaves in sight
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
    return environment


def here() -> str:
    """The address of this process' node."""
    import ray

    return ray.util.get_node_ip_address()


def require_store(uri: str) -> None:
    """Refuse a local store that is not on this node: MLflow would make a new one here, which nobody reads.

    Raises:
        RecipeError: there is none.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RecipeError(f"node {here()} has no {uri}: {_SERVER}")


_SERVER = "start `mlflow server` where every node reaches it, and pass --tracking-uri http://HOST:PORT"


def _require_room(options: argparse.Namespace) -> None:
    """Find out whether any node can take a trial: Ray would wait for one for ever, without a word.

    GPUs that trials do not ask for are told of.

    Raises:
        RecipeError: this machine, which cannot grow, has too little.
    """
    nodes = [node for node in _nodes() if _room(node, options)]
    if nodes:
        idle = 0 if options.gpus_per_trial else sum(node["Resources"].get("GPU", 0) for node in nodes)
        if idle:
            told = f"trials use none of {idle:g} GPUs: --gpus-per-trial gives each one, or a share of one"
            print(told, file=sys.stderr, flush=True)
        return
    most = {kind: max(node["Resources"].get(kind, 0) for node in _nodes()) for kind in ("CPU", "GPU")}
    wanted = f"a trial takes {options.cpus_per_trial} CPUs and {options.gpus_per_trial:g} GPUs"
    if options.address == "local":
        raise usage_error(f"{wanted}, and Ray finds {most['CPU']:g} and {most['GPU']:g} here")
    print(f"{wanted}: no node has so much yet, and trials wait until one comes", file=sys.stderr, flush=True)


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def trials_at_a_time(options: argparse.Namespace) -> int:
    """How many trials run at once on the nodes that are there, as far as it is allowed."""
    count = sum(_room(node, options) for node in _nodes())
    return min(count, options.max_concurrent or count)


def _room(node: dict[str, Any], options: argparse.Namespace) -> int:
    """How many trials a node can run at once."""
    shares = {"CPU": options.cpus_per_trial, "GPU": options.gpus_per_trial}
    return min(int(node["Resources"].get(kind, 0) / share) for kind, share in shares.items() if share)


def _require_ready(options: argparse.Namespace, base: dict[str, Any]) -> None:
    """Find out before any trial starts what a node on another host lacks."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in _nodes() if _room(node, options)}
    others = sorted(set(nodes.values()) - {here(), "127.0.0.1"})
    if not others:
        return
    uri = base["tracking_uri"]
    if urllib.parse.urlparse(uri).scheme.partition("+")[0] in ("", "file", "sqlite"):
        raise usage_error(f"{uri} cannot be written from {_listed(others)}: {_SERVER}")
    if options.scheduler == "pbt" and not options.storage:
        raise usage_error(
            f"a population hands weights from trial to trial, also to and from {_listed(others)}: "
            "--storage names a folder or URI that every node reaches"
        )
    data = Path(base["data_dir"] or "~/tensorflow_datasets", base["dataset"])
    looks = [
        ray.remote(num_cpus=0)(_look)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(base["backend"], uri, data)
        for node in nodes
    ]
    try:
        seen = dict(zip(nodes.values(), ray.get(looks), strict=True))
    except ray.exceptions.RayError as error:
        raise RecipeError(f"a node cannot run trials: {str(error).strip().splitlines()[-1]}") from error
    for node, (problem, _) in seen.items():
        if problem:
            raise usage_error(f"{_listed([node])} cannot run trials: {problem}")
    lacking = sorted(node for node, (_, has_data) in seen.items() if not has_data)
    if lacking and len(lacking) < len(seen):  # a built-in dataset lies nowhere
        raise usage_error(
            f"there is no {data} on {_listed(lacking)}, but on others there is: "
            "--data-dir is a folder of every node"
        )


def _look(name: str, uri: str, data: Path) -> tuple[str, bool]:
    """What keeps this node from running trials, if anything, and whether it has the data."""
    try:
        if name != "numpy":
            backend.require_installed(name)
        if not importlib.util.find_spec("mlflow"):
            raise RecipeError("mlflow is not installed: pip install keras-recipes")
        outage.probe(uri)
    except RecipeError as error:
        return str(error), False
    return "", data.expanduser().is_dir()


def _listed(nodes: list[str]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}"
