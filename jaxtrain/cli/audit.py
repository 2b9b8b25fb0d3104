"""`jaxtrain audit`: what may be wrong with the images and labels that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from jaxtrain.cli.command import Command
from jaxtrain.cli.workers import embedding_rows, workers_of
from jaxtrain.config import DataConfig, FeaturesConfig, ModelConfig, WorkersConfig
from jaxtrain.errors import UserError

if TYPE_CHECKING:
    from jaxtrain.cluster.pool import Workers

_IDLE = {
    *("val_fraction", "fold", "shots", "draws", "sampling", "sampling_beta", "loader", "device_budget_mb"),
}
"""Options of a data set that have no effect: every image that is trained on is judged, and its label not trained on."""


class Audit(Command):
    """Find label errors, near duplicates, outliers and overlapping classes.

    Each label is judged by a linear head on the embeddings of a frozen backbone, trained on the other folds
    (--data.folds, 5 by default). Writes a page with pictures, audit.html, and suggestions.csv; changes no data.
    """

    important = ("data.name", "data.image_size", "data.folds", "data.group", "model.weights")
    examples = ("audit --data.name folder:photos", "audit --data.name csv:photos.csv --model.weights runs/pt/mine")

    out: Path | None = None
    """Folder for the page and the table (default: runs/audit/DATASET-N)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of what is drawn at random."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    cluster: WorkersConfig = WorkersConfig()

    @field_validator("data")
    @classmethod
    def _all_images(cls, data: DataConfig) -> DataConfig:
        if idle := _IDLE & data.model_fields_set:
            raise ValueError(f"data.{min(idle)} has no effect on an audit, which judges every image that is trained on")
        return data

    @field_validator("features")
    @classmethod
    def _one_view(cls, features: FeaturesConfig) -> FeaturesConfig:
        if features.views > 1:
            raise ValueError("features.views has no effect on an audit, which judges each image as it is")
        return features

    def run(self) -> None:
        """Look, write, and print how many of each were found."""
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file, and a folder is needed")
        with workers_of(self.cluster) as workers:
            self._audit(workers)

    def _audit(self, workers: Workers | None) -> None:
        from jaxtrain.classifiers.audit import audited, open_audit
        from jaxtrain.evaluation.audit_page import write_audit
        from jaxtrain.files import numbered_folder
        from jaxtrain.screen.console import print_line

        sections = {name: getattr(self, name) for name in ("seed", "quiet", "model", "features")}
        embedding, folds = open_audit(self.data, **sections)
        with embedding_rows(workers, embedding) as rows:
            found = audited(embedding, folds, rows)
        folder = write_audit(found, self.out or numbered_folder(Path("runs/audit"), found.name))
        if not self.quiet:
            near = "not looked for" if found.near_duplicates is None else f"{len(found.near_duplicates):,}"
            print_line(f"likely label errors {len(found.label_errors):,} of {found.judged:,} labels")
            print_line(f"near duplicates {near}, outliers {len(found.outliers):,}")
            print_line(f"page {folder / 'audit.html'}, table {folder / 'suggestions.csv'}")
