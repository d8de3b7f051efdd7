"""Models in MLflow: stored with the weights of one backend, loaded on any."""

import tempfile
import warnings
from importlib import metadata
from pathlib import Path

import keras
import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, infer_signature

import layers
from recipes.engine import store


def log(
    client: mlflow.MlflowClient, run_id: str, model: keras.Model, name: str, example: np.ndarray, step: int
) -> None:
    """Store a Keras model in a run as an MLflow model of the flavour `keras`.

    Args:
        client: where the run is.
        run_id: the run.
        model: what to store; not compiled, so that no loss or optimizer is needed to load it.
        name: its name in the run.
        example: inputs, for the model's signature.
        step: the optimizer step that the weights come from.
    """
    # Step by step, not by `log_model`, which files under the process' current experiment and run.
    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id)
    packages = ["keras", "numpy", keras.backend.backend()]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder, name))
        mlflow.keras.save_model(
            model,
            path,
            mlflow_model=Model(run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id),
            signature=infer_signature(example, model.predict(example, verbose=0)),
            # Given outright: MLflow would find them by loading the model in another process, for minutes.
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in packages],
        )
        client.log_model_artifacts(logged.model_id, path)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])


def load(uri: str, tracking_uri: str | None = None) -> keras.Model:
    """A stored model, on the backend of this process, whichever one it was trained on.

    `mlflow.keras.load_model` does the same in a program that has imported the layers it is made of.

    Args:
        uri: `runs:/RUN_ID/model`, or the address of a logged model.
        tracking_uri: where the run is; None for `sqlite:///mlruns/mlflow.db`.

    Returns:
        The Keras model.
    """
    for name in layers.__all__:
        getattr(layers, name)  # Keras finds a class by its registration, that is after its import
    mlflow.set_tracking_uri(store.absolute(tracking_uri))
    return mlflow.keras.load_model(uri)
