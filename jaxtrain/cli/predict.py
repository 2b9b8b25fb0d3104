"""`jaxtrain predict`: image files labelled by a trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from jaxtrain.cli.command import Command, Positional
from jaxtrain.errors import RunError
from jaxtrain.escape import plain


class Predict(Command):
    """Label image files with a trained model: file, label and probability, one line per image.

    A file that cannot be read gets a line that says why, and the exit code is 1 then.
    """

    run_dir: Annotated[Path, Positional("RUN_DIR")]
    """Run directory, or a folder written by save()."""
    images: Annotated[tuple[Path, ...], Positional("IMAGE")]
    """Image files, or folders of them."""
    trust_imports: bool = False
    """Import the network or class that the run names (module:Name): it is executed, so only for runs that you trust."""

    def run(self) -> None:
        """Print a line for each; RunError at the end where some could not be read."""
        import numpy as np

        from jaxtrain import load
        from jaxtrain.data.bad_images import BadImages
        from jaxtrain.data.base import FileSource
        from jaxtrain.data.folder import images_below
        from jaxtrain.evaluation.metrics import softmax

        classifier = load(self.run_dir, trust_imports=self.trust_imports)
        paths = [file for path in self.images for file in (images_below(path)[0] if path.is_dir() else [path])]
        source, bad_images = FileSource(paths, np.zeros(len(paths), np.int32)), BadImages(allowed=None, named=False)
        if paths:
            logits = classifier.fitted.predictor.predict_logits(source, bad_images)
            broken = 0
            for index, row in enumerate(softmax(logits)):
                name, best = source.describe(index), row.argmax()
                reason = bad_images.reasons.get(name)
                if reason is None and not np.isfinite(row).all():
                    reason, broken = "the model gives no number", broken + 1
                answer = f"{plain(classifier.class_names[best])}\t{row[best]:.4f}"
                label = answer if reason is None else f"unreadable: {plain(reason)}"
                print(f"{plain(name)}\t{label}")
            if broken:
                raise RunError(f"{self.run_dir}: the model gives no finite numbers for {broken} of {len(paths)} images")
        if bad_images.reasons:
            raise RunError(f"{len(bad_images.reasons)} of {len(paths)} images cannot be read")
        if not paths:
            raise RunError("the folders hold no images: " + ", ".join(map(os.fspath, self.images)))
