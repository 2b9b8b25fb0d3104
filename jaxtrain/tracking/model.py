"""A trained model in MLflow: "models from code", so no pickle is written and none is read."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import read_npy
from jaxtrain.data.decode import png_of

_PACKAGE = Path(__file__).parents[1]
CODE = _PACKAGE / "classifiers" / "pyfunc_model.py"


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
    example = read_npy(Path(request["example"]), "array of example images", "train again")
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
        local, package = Path(temporary) / "model", Path(temporary) / _PACKAGE.name
        shutil.copytree(_PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.png", "*.md"))
        mlflow.pyfunc.save_model(
            str(local),
            python_model=str(CODE),
            artifacts={"model": folder.as_uri()},
            code_paths=[str(package)],  # what loads it travels with it, so that it is served where jaxtrain is not
            signature=image_signature(),
            input_example=_as_files(example),
            pip_requirements=request["pip_requirements"],
            mlflow_model=description,
        )
        client.log_model_artifacts(model_id, str(local))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    if (registered := request.get("register")) is not None:
        register_model(client, registered, model_id, run_id)


def register_model(client: Any, name: str, model_id: str, run_id: str) -> str:
    """The model as the next version of a registered one, which is made where it is missing; the version."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id:  # an earlier attempt may have got this far
            return str(version.version)
    location = client.get_logged_model(model_id).artifact_location  # models:/ID would be sought in MLflow's default
    return str(client.create_model_version(name, location, run_id, model_id=model_id).version)


def image_signature() -> Any:
    """Any form of images in (`pyfunc_model.py` checks them); label, its probability, all probabilities out."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    columns = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    return ModelSignature(outputs=Schema(columns), params=ParamSchema([ParamSpec("top_k", DataType.long, 0)]))


def _as_files(images: NDArray[Any]) -> dict[str, list[Any]]:
    """As a request over HTTP has them: a column of base64 text, or of pixels where no file can hold them."""
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        return {"image": images.tolist()}
    return {"image": [base64.b64encode(png_of(image)).decode() for image in images]}


def default_requirements() -> list[str]:
    """What the stored model needs to run, at the versions installed here; jaxtrain itself is stored with it."""
    found = []
    for line in importlib.metadata.requires("jaxtrain") or ():
        name = re.match(r"[\w.-]+", line)
        if name is not None and "extra ==" not in line:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append(f"{name[0]}=={importlib.metadata.version(name[0])}")
    return found
