"""The champion of a registered model: the version that the alias `champion` names, as a stored model."""

from __future__ import annotations

from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.redact import redact
from jaxtrain.tracking.model import register_model
from jaxtrain.tracking.store import connect, tracking_uri

ALIAS = "champion"


class Championship:
    """One registered model of one store."""

    def __init__(self, uri: str | None, name: str) -> None:
        """`uri` as in `tracking.uri`. Raises UserError where the store does not answer."""
        self.name = name
        self._uri = tracking_uri(uri)
        self._client = self._asked(lambda: connect(self._uri))

    def holder(self) -> str | None:
        """The id of the MLflow run whose model the alias names; None where there is none yet."""
        from mlflow.exceptions import MlflowException

        def ask() -> str | None:
            try:
                return self._client.get_model_version_by_alias(self.name, ALIAS).run_id
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                return None

        return self._asked(ask)

    def crown(self, model_id: str) -> str:
        """Moves the alias to the version of a stored model, which is registered where it is not; the version."""

        def move() -> str:
            run_id = self._client.get_logged_model(model_id).source_run_id
            version = register_model(self._client, self.name, model_id, run_id)
            self._client.set_registered_model_alias(self.name, ALIAS, version)
            return version

        return self._asked(move)

    def _asked(self, ask: Any) -> Any:
        try:
            return ask()
        except Exception as error:  # whatever a store, its driver or the network say
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"--champion {self.name}: {redact(self._uri)} does not answer: {redact(first)}") from None
