"""A trained model as a folder: what its `meta.json` says besides weights, checked before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.readers import reading
from jaxtrain.saved_tree import load_tree, read_meta, read_shapes
from jaxtrain.trees import Tree, flat_parts

PARTS = ("params", "frozen", "model_state")
OTHER = "is it of another version of jaxtrain? Train it again, or bring it back from a copy"
"""What to do about a folder that is not damaged, but cannot be used."""


class About(BaseModel):
    """What a folder says of its model."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    technique: Literal["fe", "ft", "pt"]
    config: Config
    """Resolved."""
    class_names: Annotated[tuple[StrictStr, ...], Field(min_length=1)]
    class_weights: tuple[float, ...] | None = None
    extra: dict[str, Any] = {}
    """See `Fitted`."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.config.technique != self.technique:
            raise ValueError(f"technique {self.technique} with the config of {self.config.technique}")
        classes, thresholds = self.extra.get("classes"), self.extra.get("thresholds")
        lists = {"class_weights": self.class_weights, "extra.classes": classes, "extra.thresholds": thresholds}
        for name, values in lists.items():
            if values is not None and (not isinstance(values, list | tuple) or len(values) != len(self.class_names)):
                raise ValueError(f"{name}: must be one for each of {len(self.class_names)} classes")
        if thresholds is not None and not all(isinstance(each, float) and 0 <= each <= 1 for each in thresholds):
            raise ValueError("extra.thresholds: must be numbers from 0 to 1")
        if classes is not None and len({type(label) for label in classes} & {int, str}) != 1:
            raise ValueError("extra.classes: must be integers or strings")
        return self


@dataclass(frozen=True)
class SavedModel:
    """A folder that `jaxtrain.runs.fitted.save_model` wrote."""

    path: Path
    about: About

    @classmethod
    def open(cls, path: Path) -> SavedModel:
        """The one of a run directory, or in `path` itself; no weight is read.

        Raises UserError where there is none, DamagedError where it is not sound or of another version.
        """
        folder = path / "model" if (path / "model").is_dir() else path
        if not (folder / "meta.json").is_file():
            raise UserError(
                f"{path}: no model there; give the directory of a finished run, or a folder written by save()"
            )
        meta = read_meta(folder)
        with reading(folder, "saved model", OTHER):
            return cls(folder, About.model_validate(meta))

    def shapes(self) -> Tree:
        """A `jax.ShapeDtypeStruct` for each weight, as in `weights`."""
        return self._parts(read_shapes(self.path))

    def weights(self) -> Tree:
        """Host arrays by name of {"params", "frozen", "model_state"}. Raises as `load_tree`."""
        return self._parts(load_tree(self.path)[0])

    def _parts(self, tree: Tree) -> Tree:
        with reading(self.path, "saved model", OTHER):
            return {part: flat_parts(tree)[part] for part in PARTS}
