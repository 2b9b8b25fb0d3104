"""A trained model in MLflow: "models from code", so no pickle is written and none is read."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CODE = Path(__file__).parent.with_name("classifiers") / "pyfunc_model.py"


def store_model(
    client: Any,
    experiment_id: str,
    run_id: str,
    request: Mapping[str, Any],
    model_id: str | None,
    created: Callable[[str], None],
) -> None:
    """Upload an exported model folder as a LoggedModel of the run.

    `request` is what `Tracker.log_model` queued, with the run's parameters as `params`. `model_id` is the model that an
    earlier, interrupted attempt created; `created` is told the id of a new one. Nothing is imported from JAX, and the
    model is not run.
    """
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    folder = Path(request["path"])
    example = np.load(request["example"], allow_pickle=False)
    if model_id is None:
        # The answer to an earlier attempt may have been lost.
        wanted = f"source_run_id = '{run_id}' AND name = '{request['name']}'"
        found = list(client.search_logged_models([experiment_id], filter_string=wanted))
        model = (
            found[0]
            if found
            else client.create_logged_model(
                experiment_id,
                name=request["name"],
                source_run_id=run_id,
                model_type="image-classifier",
                params=dict(request["params"]),
            )
        )
        model_id = str(model.model_id)
        created(model_id)
    outputs = client.get_run(run_id).outputs
    if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=request["step"])])
    description = Model(
        artifact_path=client.get_logged_model(model_id).artifact_location,
        model_uuid=model_id,
        model_id=model_id,
        run_id=run_id,
        metadata={"class_names": request["class_names"]},
    )
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            str(local),
            python_model=str(CODE),
            artifacts={"model": folder.as_uri()},
            signature=image_signature(example.shape[1:]),
            input_example=example,
            pip_requirements=request["pip_requirements"],
            mlflow_model=description,
        )
        client.log_model_artifacts(model_id, str(local))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    if (registered := request.get("register")) is not None:
        _register(client, registered, model_id, run_id)


def _register(client: Any, name: str, model_id: str, run_id: str) -> None:
    """The model as the next version of a registered one, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    if not any(version.run_id == run_id for version in versions):  # an earlier attempt may have got this far
        location = client.get_logged_model(model_id).artifact_location  # models:/ID would be sought in MLflow's default
        client.create_model_version(name, location, run_id, model_id=model_id)


def image_signature(image_shape: tuple[int, ...]) -> Any:
    """Images `uint8[n, height, width, channels]` in; label, its probability, all probabilities out."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *image_shape))]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )


def default_requirements() -> list[str]:
    """What the stored model needs to run, at the versions installed here."""
    found = []
    for name in ("jaxtrain", "jax", "flax", "numpy", "mlflow"):
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(name)
    return found
