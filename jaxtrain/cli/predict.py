"""`jaxtrain predict`: image files labelled by a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from jaxtrain.cli.command import Command, Positional
from jaxtrain.errors import UserError


class Predict(Command):
    """Label image files with a trained model: file, label and probability, one line per image."""

    run_dir: Annotated[Path, Positional("RUN_DIR")]
    """Run directory, or a folder written by save()."""
    images: Annotated[tuple[Path, ...], Positional("IMAGE")]
    """Image files."""

    def run(self) -> None:
        """Print a line for each."""
        import numpy as np

        from jaxtrain import load
        from jaxtrain.data.base import FileSource

        for path in self.images:
            if not path.is_file():
                raise UserError(f"{path}: no such file")
        classifier = load(self.run_dir)
        source = FileSource(list(self.images), np.zeros(len(self.images), np.int32))
        for path, row in zip(self.images, classifier.predict_proba(source), strict=True):
            best = row.argmax()
            print(f"{path}\t{classifier.class_names[best]}\t{row[best]:.4f}")
