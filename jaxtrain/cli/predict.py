"""`jaxtrain predict`: image files labelled by a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from jaxtrain.cli.command import Command, Positional
from jaxtrain.cli.workers import workers_of
from jaxtrain.config import ExplainMethod, WorkersConfig
from jaxtrain.errors import RunError, UserError
from jaxtrain.escape import plain

if TYPE_CHECKING:
    from jaxtrain.classifiers.base import BaseClassifier
    from jaxtrain.classifiers.labelling import Labelling
    from jaxtrain.cluster.pool import Workers


class Predict(Command):
    """Label image files with a trained model: file, label and probability, one line per image.

    Of several labels per image all that the image gets, the most probable first; "no label" where it gets none.

    A file that cannot be read gets a line that says why, and the exit code is 1 then.
    """

    run_dir: Annotated[Path, Positional("RUN_DIR")]
    """Run directory, or a folder written by save()."""
    images: Annotated[tuple[Path, ...], Positional("IMAGE")]
    """Image files, or folders of them; - reads paths from standard input, one a line."""
    out: Path | None = None
    """Write a table, .csv, .jsonl or .parquet, instead of lines; the same command goes on where it was cut off."""
    topk: Annotated[int, Field(ge=1)] | None = None
    """Classes per image, the most probable first (default: 1; of several labels per image, those that it gets)."""
    embeddings: bool = False
    """The vector before the head too, in tables of .jsonl or .parquet."""
    explain: Path | None = None
    """A folder for a PNG per image: the image, and beside it what in it speaks for the most probable class, as heat."""
    explain_method: ExplainMethod = "auto"
    """gradcam: by the gradients of that class; rollout: by where a vision transformer looks, whatever the class; auto:
    rollout for vision transformers with plain attention, else gradcam."""
    cluster: WorkersConfig = WorkersConfig()
    trust_imports: bool = False
    """Import the network or class that the run names (module:Name): it is executed, so only for runs that you trust."""

    @model_validator(mode="after")
    def _a_cluster_writes_a_table(self) -> Predict:
        if self.cluster.address is not None and self.out is None:
            raise ValueError("cluster: give --out, a table")
        if self.cluster.address is not None and self.explain is not None:
            raise ValueError("explain: heat maps are made on this machine: leave out --cluster.address")
        if self.explain is None and self.explain_method != "auto":
            raise ValueError("explain_method needs --explain FOLDER")
        return self

    @model_validator(mode="after")
    def _vectors_need_a_table(self) -> Predict:
        if self.embeddings and (self.out is None or self.out.suffix == ".csv"):
            raise ValueError("embeddings: give --out with a name that ends in .jsonl or .parquet")
        return self

    def run(self) -> None:
        """Print a line for each; RunError at the end where some could not be read."""
        with workers_of(self.cluster) as workers:
            self._predict(workers)

    def _predict(self, workers: Workers | None) -> None:
        from jaxtrain import load

        if self.explain is not None and self.explain.exists() and not self.explain.is_dir():
            raise UserError(f"--explain {self.explain} is a file, and a folder is needed")
        files = self._files()
        classifier = load(self.run_dir, trust_imports=self.trust_imports)
        if not files:
            raise RunError("the folders hold no images: " + ", ".join(map(os.fspath, self.images)))
        if self.explain is not None:
            print(f"{self.explain}: {classifier.fitted.predictor.explained_by(self.explain_method)}", file=sys.stderr)
            self.explain.mkdir(parents=True, exist_ok=True)
        if self.out is None:
            unreadable = self._print(classifier, files)
        else:
            unreadable = self._write(classifier, files, self.out, workers)
        if unreadable:
            raise RunError(f"{unreadable} of {len(files)} images cannot be read")

    def _files(self) -> list[str]:
        from jaxtrain.data.folder import images_below

        files: list[str] = []
        for path in self.images:
            if str(path) == "-":
                files += [line for line in map(str.strip, sys.stdin) if line]
            else:
                files += images_below(path)[0] if path.is_dir() else [str(path)]
        return files

    def _print(self, classifier: BaseClassifier, files: list[str]) -> int:
        unreadable = 0
        for rows in self._labelling().rows(classifier, files):
            for row in rows:
                told = "\t".join(f"{plain(each['label'])}\t{each['probability']:.4f}" for each in row.get("top", ()))
                unreadable += "reason" in row
                if "reason" in row:
                    told = f"unreadable: {plain(row['reason'])}"
                print(f"{plain(row['file'])}\t{told or 'no label'}")
        return unreadable

    def _write(self, classifier: BaseClassifier, files: list[str], out: Path, workers: Workers | None) -> int:
        from jaxtrain.classifiers.labelling import weights_digests
        from jaxtrain.cli.rows import Rows
        from jaxtrain.screen.console import print_line
        from jaxtrain.screen.progress import Progress

        asked: list[Any] = [files, self.topk, self.embeddings, self.explain]
        asked += [] if self.explain_method == "auto" else [self.explain_method]
        with Rows(out, [*weights_digests(classifier), *asked]) as table:
            if table.done:
                print_line(f"{table.done:,} of {len(files):,} images are done")
            with Progress(title="predicted", file=sys.stderr) as progress:
                done = table.done
                for rows in self._computed(classifier, files, done, workers):
                    table.add(rows)
                    done += len(rows)
                    progress.count(done, len(files))
            unreadable = table.finish()
        print_line(f"{len(files):,} images: {out}")
        return unreadable

    def _labelling(self) -> Labelling:
        from jaxtrain.classifiers.labelling import Labelling

        return Labelling(self.run_dir, self.topk, self.embeddings, self.explain, self.explain_method)

    def _computed(
        self, classifier: BaseClassifier, files: list[str], done: int, workers: Workers | None
    ) -> Iterator[list[dict[str, Any]]]:
        """Rows in the order of the files that are not done, computed here or on a cluster."""
        if workers is None:
            return self._labelling().rows(classifier, files[done:], done)
        from jaxtrain.cluster.predict import predicted

        return predicted(workers, self._labelling(), classifier, files[done:], trust_imports=self.trust_imports)
