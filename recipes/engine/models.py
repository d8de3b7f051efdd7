"""Models in MLflow: stored with the weights of one backend, loaded on any."""

import logging
import warnings
from importlib import metadata

import keras
import mlflow
import numpy as np
from mlflow.models import Model, infer_signature

import layers


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
    # Made first: left to itself, MLflow files the model under its current experiment, not under the run's.
    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id)
    packages = ["keras", "numpy", keras.backend.backend()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        Model.log(
            None,
            mlflow.keras,
            name=name,
            run_id=run_id,
            model_id=logged.model_id,
            step=step,
            model=model,
            signature=infer_signature(example, model.predict(example, verbose=0)),
            # Given outright: MLflow would find them by loading the model in another process, for minutes.
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in packages],
        )


def load(uri: str) -> keras.Model:
    """A stored model, on the backend of this process, whichever one it was trained on.

    `mlflow.keras.load_model` does the same in a program that has imported the layers it is made of.

    Args:
        uri: `runs:/RUN_ID/model`, or the address of a logged model.

    Returns:
        The Keras model.
    """
    for name in layers.__all__:
        getattr(layers, name)  # Keras finds a class by its registration, that is after its import
    return mlflow.keras.load_model(uri)
