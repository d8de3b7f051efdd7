"""Sweeps on several nodes and with a server: whatever dies, no trial is lost, and none is there twice."""

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
import yaml

from recipes.engine.errors import RecipeError
from tests.tuning.sweeping import DIGITS, finished, records, started, until
from tuning import nodes, sweep

pytestmark = pytest.mark.once

EXAMPLES = Path("tuning/cluster")
OTHER = "127.0.0.2"  # this machine's, too, but Ray does not know
linux = pytest.mark.skipif(sys.platform != "linux", reason=f"elsewhere {OTHER} has to be set up")


class Server:
    """`mlflow server` on a store of its own; it can be killed and started again."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{self.folder}/store.db",
             "--artifacts-destination", str(self.folder / "artifacts")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # eight processes more
        )  # fmt: skip
        while not self.answers():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.2)

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one core, each with an address; the second has a home of its own, with data."""
    from ray.cluster_utils import Cluster

    # A dead node is found out in 2 s instead of 15 s.
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
    )
    home = tmp_path_factory.mktemp("home")
    (home / "tensorflow_datasets/shapes").mkdir(parents=True)
    cluster.add_node(num_cpus=1, node_ip_address=OTHER, env_vars={"HOME": str(home)})
    yield cluster
    cluster.shutdown()


@linux
@pytest.mark.parametrize(
    ("dataset", "served", "sentence"),
    [
        ("digits", False, f"cannot be written from node {OTHER}: start `mlflow server`"),
        (
            "shapes",
            True,
            "but on others there is: --data-dir is a folder of every node",
        ),
    ],
)
def test_what_a_node_lacks_is_told_before_trials_start(
    dataset, served, sentence, cluster, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)  # a node's own default is its home
    uri = server.uri if served else f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    with pytest.raises(SystemExit) as stop:
        sweep.main(
            ["cnn_cifar", "--backend", "torch", "--dataset", dataset, "--grid", "learning_rate=0.1,0.01",
             "--address", cluster.address, "--tracking-uri", uri]
        )  # fmt: skip
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("cnn_cifar").experiment_id])
    assert run.info.status == "FAILED" and run.data.tags["kind"] == "sweep"


def test_trials_that_fit_nowhere_are_told_before_they_wait(monkeypatch, capsys):
    """Here nothing will come; on a cluster a node may, and says so."""
    nodes_seen = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes_seen)
    for cpus, gpus, fits in ((4, 0.0, True), (5, 0.0, False), (1, 0.5, False)):
        for address in ("local", "auto"):
            options = argparse.Namespace(address=address, cpus_per_trial=cpus, gpus_per_trial=gpus)
            told = f"a trial takes {cpus} CPUs and {gpus:g} GPUs"
            if fits or address == "auto":
                nodes._require_room(options)
                assert (told in capsys.readouterr().err) == (not fits)
            else:
                with pytest.raises(RecipeError, match=f"{told}, and Ray finds 4 and 0 here"):
                    nodes._require_room(options)


def test_trials_at_a_time_are_those_that_fit_on_the_nodes_that_live(monkeypatch):
    nodes_seen = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 7.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes_seen)
    for cpus, gpus, most, count in ((1, 0.0, None, 11), (2, 0.0, None, 5), (1, 0.5, None, 2), (1, 0.0, 3, 3)):
        options = argparse.Namespace(cpus_per_trial=cpus, gpus_per_trial=gpus, max_concurrent=most)
        assert nodes.trials_at_a_time(options) == count


@linux
def test_a_population_on_several_machines_needs_a_storage_for_all(cluster):
    options = argparse.Namespace(
        address=cluster.address, cpus_per_trial=1, gpus_per_trial=0, scheduler="pbt", storage=None
    )
    base = {"backend": "torch", "tracking_uri": "http://127.0.0.1:1"}
    with pytest.raises(RecipeError, match="--storage names a folder"), nodes.connected(options, base):
        pytest.fail("connected")


@pytest.mark.parametrize(("share", "fraction"), [(0.25, 0.225), (1.0, 0.9), (2.0, 0.9), (0.0, None)])
def test_trials_share_a_gpus_memory_and_no_cores(share, fraction, monkeypatch):
    """Without these flags the first trial takes all of the memory; trials without a share see no GPU."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    options = argparse.Namespace(address="auto", cpus_per_trial=2, gpus_per_trial=share)
    environment = nodes.worker_environment(options, "jax")
    assert float(environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "nan")) == pytest.approx(
        fraction or float("nan"), nan_ok=True
    )
    assert environment.get("TF_FORCE_GPU_ALLOW_GROWTH") == (fraction and "true")
    assert {environment["OMP_NUM_THREADS"], environment["NPROC"]} == {"2"}
    seen = environment.get("CUDA_VISIBLE_DEVICES"), environment.get("JAX_PLATFORMS")
    assert seen == ((None, None) if share else ("", "cpu"))


def test_gpus_that_no_trial_asks_for_are_told(monkeypatch, capsys):
    node = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}
    monkeypatch.setattr("ray.nodes", lambda: [node, {**node, "Alive": False}])
    for share in (0.5, 0.0):
        nodes._require_room(argparse.Namespace(address="local", cpus_per_trial=1, gpus_per_trial=share))
        assert ("trials use none of 2 GPUs: --gpus-per-trial" in capsys.readouterr().err) == (share == 0)


@linux
def test_neither_a_killed_node_nor_a_killed_server_costs_a_trial(cluster, server, tmp_path):
    driver = started(
        tmp_path, "mlp_fashion", *DIGITS, "--epochs", "30", "--grid", "learning_rate=0.01,0.001",
        "--seeds", "2", "--full", "--study", "rates", "--address", cluster.address,
        "--tracking-uri", server.uri,
    )  # fmt: skip
    both = {cluster.head_node.node_ip_address, OTHER}
    until(lambda: {run.data.tags["node"] for run in records(server.uri) if run.data.metrics} == both, driver)
    server.kill()
    (victim,) = cluster.worker_nodes
    cluster.remove_node(victim, allow_graceful=False)
    server.start()
    assert driver.wait(600) == 0, driver.out.read_text()

    assert sorted(finished(server.uri).values()) == [1] * 4
    runs = records(server.uri)
    done = [run for run in runs if run.info.status == "FINISHED"]
    lost = {(run.info.status, run.data.tags["node"]) for run in runs if run not in done}
    assert lost == {("KILLED", OTHER)}
    client = mlflow.MlflowClient(server.uri)
    for run in done:
        assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == 30

    (parent,) = records(server.uri, "sweep")
    assert parent.info.status == "FINISHED" and parent.data.metrics["failed_trials"] == 0
    for tag in ("recipe", "study", "backend", "command", "version.keras", "version.python"):
        assert {run.data.tags[tag] for run in runs} == {parent.data.tags[tag]}
    for tag in ("mlflow.source.git.commit", "git.dirty"):  # which nodes cannot know
        assert {run.data.tags.get(tag) for run in runs} == {parent.data.tags.get(tag)}
    assert {(run.data.tags["setting"], run.data.tags["seed"]) for run in done} == set(finished(server.uri))

    assert not (tmp_path / "mlruns/artifacts").exists()
    for run in [parent, *done]:
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        figures = Path(client.download_artifacts(run.info.run_id, "figures", tmp_path))
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())


def test_a_server_that_stays_away_costs_nothing(server, tmp_path, monkeypatch, capsys):
    driver = started(
        tmp_path, "mlp_fashion", *DIGITS, "--epochs", "30", "--grid", "learning_rate=0.01,0.001,0.0001",
        "--experiment", "away", "--tracking-uri", server.uri, "--patience", "5", "--max-concurrent", "1",
    )  # fmt: skip
    until(lambda: any(run.data.metrics for run in records(server.uri, experiment="away")), driver)
    (parent,) = records(server.uri, "sweep", "away")
    server.kill()
    try:
        assert driver.wait(600) == 1, driver.out.read_text()
    finally:
        server.start()
    text = driver.out.read_text()
    assert "\nerror: the tracking server http" in text and " did not answer for 5 s: " in text
    again = ["--resume", parent.info.run_id, "--tracking-uri", server.uri]
    assert f"python -m tuning.sweep {' '.join(again)} sends it and does the others\n" in text
    left = [run for run in records(server.uri, experiment="away") if run.info.status == "RUNNING"]
    kept = {path.stem for path in (tmp_path / "mlruns/unsent").iterdir()}
    assert kept == {run.info.run_id for run in left} | {parent.info.run_id} and len(left) == 1

    monkeypatch.chdir(tmp_path)
    sweep.main(again)
    # Of those that failed, the first had come to its end.
    assert f"goes on: {3 - text.count('  FAILED  ') + 1} of 3 trials" in capsys.readouterr().out
    runs = records(server.uri, experiment="away")
    assert len(runs) == 3 and {run.info.status for run in runs} == {"FINISHED"}
    assert len(finished(server.uri, "away")) == 3
    client = mlflow.MlflowClient(server.uri)
    for run in runs:
        assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == 30
    (parent,) = records(server.uri, "sweep", "away")
    assert parent.info.status == "FINISHED" and not [*(tmp_path / "mlruns/unsent").iterdir()]


def commands(text, module):
    """The words of every command of a module in a text; they end with a line, a comment or a quote."""
    found = re.findall(rf"python -m {module} ((?:\\\n|[^\n'#])*)", text)
    return [shlex.split(words.replace("\\\n", " ")) for words in found]


def examples():
    readme, slurm = ((EXAMPLES / name).read_text() for name in ("README.md", "slurm.sh"))
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    texts = {"README.md": readme, "slurm.sh": slurm, "kuberay.yaml": job["spec"]["entrypoint"]}
    return [(name, words) for name, text in texts.items() for words in commands(text, "tuning.sweep")]


@pytest.mark.parametrize(("folder", "mode"), [(".ray", "token"), (".other", None)])
def test_a_client_shows_the_clusters_token_where_there_is_one(folder, mode, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "auth_token").write_text("secret")
    nodes.bring_token()
    assert os.environ.get("RAY_AUTH_MODE") == mode
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    nodes.bring_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(("source", "words"), examples())
def test_example_commands_are_accepted(source, words):
    if words[0] == "--resume":
        assert words[2:] == ["--tracking-uri", "http://HOST:5000"]
    else:
        options, config, axes = sweep._parsed(words)
        assert options.address != "local" and config.tracking_uri and axes.fields


def test_every_example_has_a_command():
    assert {name for name, _ in examples()} == {"README.md", "slurm.sh", "kuberay.yaml"}


def test_the_cluster_launcher_takes_its_example():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((EXAMPLES / "ray_up.yaml").read_text())
    validate_config(prepare_config(config))
    assert not any(" " in path for path in config["rsync_exclude"])


def test_the_job_for_kubernetes_runs_one_image_in_the_tested_version():
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert {container["image"] for container in containers} == {"IMAGE"} and len(containers) == 2
    assert all(
        container["resources"]["requests"] == container["resources"]["limits"] for container in containers
    )
    (version,) = re.findall(r"^ray==(\S+)$", Path("constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == version
    for name in ("README.md", "ray_up.yaml"):
        assert set(
            re.findall(r"(?:rayproject/ray:|ray\[default\]==)([\d.]+)", (EXAMPLES / name).read_text())
        ) == {version}


def test_the_batch_script_starts_head_workers_and_sweep(tmp_path):
    """With Slurm, Ray and Python that only write down how they were called."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("PATH=$PWD/bin:$PATH")
    (tmp_path / "bin").mkdir()
    for name in ("srun", "ray", "python", "scontrol"):
        said = {
            "scontrol": 'printf "a\\nb\\nc\\n"',
            "srun": 'case "$*" in *hostname*) echo 10.0.0.1;; esac',
        }.get(name, ":")
        (tmp_path / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $*" >> calls\n{said}\n')
        (tmp_path / "bin" / name).chmod(0o755)
    script = str((EXAMPLES / "slurm.sh").absolute())
    slurm = {"SLURM_JOB_NODELIST": "[a-c]", "SLURM_JOB_ID": "70123", "SLURM_CPUS_PER_TASK": "4"}
    environment = {**os.environ, **slurm, "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run(["bash", script], check=True, cwd=tmp_path, env=environment, timeout=60)
    calls = (tmp_path / "calls").read_text()
    assert (
        "--nodelist=a ray start --head --node-ip-address=10.0.0.1 --port=20123 --num-cpus=4 --block" in calls
    )
    assert "--nodes=2 --ntasks=2 --exclude=a ray start --address=10.0.0.1:20123 --num-cpus=4 --block" in calls
    assert "--address 10.0.0.1:20123 --cpus-per-trial 4 --tracking-uri http://mlflow:5000" in calls
    del environment["MLFLOW_TRACKING_URI"]
    refused = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert refused.returncode != 0 and "names no MLflow server" in refused.stderr
