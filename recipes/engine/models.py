"""Models in MLflow: stored with the weights of one backend, loaded on any."""

import logging
import warnings
from importlib import metadata
from typing import Any

import keras
import numpy as np


def log(run_id: str, model: keras.Model, name: str, example: np.ndarray) -> None:
    """Store a Keras model in a run as an MLflow model of the flavour `keras`.

    Args:
        run_id: the run.
        model: what to store.
        name: its name in the run.
        example: inputs, for the model's signature.
    """
    import mlflow
    from mlflow.models import Model, infer_signature

    packages = ["keras", "numpy", keras.backend.backend()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        Model.log(
            None,
            mlflow.keras,
            name=name,
            run_id=run_id,
            model=model,
            signature=infer_signature(example, model.predict(example, verbose=0)),
            # Given outright: MLflow would find them by loading the model in another process, for minutes.
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in packages],
        )


def load(uri: str) -> Any:
    """A stored model, on the backend of this process.

    Args:
        uri: `runs:/RUN_ID/model`, or the address of a logged model.

    Returns:
        The Keras model.
    """
    import mlflow

    return mlflow.keras.load_model(uri)
