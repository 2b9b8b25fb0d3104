"""`jaxtrain predict`: image files labelled by a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from jaxtrain.cli.command import Command, Positional
from jaxtrain.errors import RunError, UserError
from jaxtrain.escape import plain


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
    trust_imports: bool = False
    """Import the network or class that the run names (module:Name): it is executed, so only for runs that you trust."""

    @model_validator(mode="after")
    def _vectors_need_a_table(self) -> Predict:
        if self.embeddings and (self.out is None or self.out.suffix == ".csv"):
            raise ValueError("embeddings: give --out with a name that ends in .jsonl or .parquet")
        return self

    def run(self) -> None:
        """Print a line for each; RunError at the end where some could not be read."""
        from jaxtrain import load

        if self.explain is not None and self.explain.exists() and not self.explain.is_dir():
            raise UserError(f"--explain {self.explain} is a file, and a folder is needed")
        files = self._files()
        classifier = load(self.run_dir, trust_imports=self.trust_imports)
        if not files:
            raise RunError("the folders hold no images: " + ", ".join(map(os.fspath, self.images)))
        if self.explain is not None:
            print(f"{self.explain}: {classifier.fitted.predictor.explained_by()}", file=sys.stderr)
            self.explain.mkdir(parents=True, exist_ok=True)
        unreadable = self._print(classifier, files) if self.out is None else self._write(classifier, files, self.out)
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

    def _print(self, classifier: Any, files: list[str]) -> int:
        unreadable = 0
        for rows in self._rows(classifier, files):
            for row in rows:
                told = "\t".join(f"{plain(each['label'])}\t{each['probability']:.4f}" for each in row.get("top", ()))
                unreadable += "reason" in row
                if "reason" in row:
                    told = f"unreadable: {plain(row['reason'])}"
                print(f"{plain(row['file'])}\t{told or 'no label'}")
        return unreadable

    def _write(self, classifier: Any, files: list[str], out: Path) -> int:
        from jaxtrain.cli.rows import Rows
        from jaxtrain.screen.console import print_line
        from jaxtrain.screen.progress import Progress
        from jaxtrain.trees import tree_digest

        model = [tree_digest(part) for part in classifier.fitted.weights.values()]
        with Rows(out, [*model, files, self.topk, self.embeddings, self.explain]) as table:
            if table.done:
                print_line(f"{table.done:,} of {len(files):,} images are done")
            with Progress(title="predicted", file=sys.stderr) as progress:
                done = table.done
                for rows in self._rows(classifier, files[done:], done):
                    table.add(rows)
                    done += len(rows)
                    progress.count(done, len(files))
            unreadable = table.finish()
        print_line(f"{len(files):,} images: {out}")
        return unreadable

    def _rows(self, classifier: Any, files: list[str], before: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Those of each batch: file, label, probability and more, or why not; `before`: files done earlier."""
        import numpy as np

        from jaxtrain.data.bad_images import BadImages
        from jaxtrain.data.base import FileSource
        from jaxtrain.evaluation.gallery import heat_picture
        from jaxtrain.files import run_name

        source, bad_images = FileSource(files, np.zeros(len(files), np.int32)), BadImages(allowed=None, named=False)
        start = 0
        predictor = classifier.fitted.predictor
        stream = predictor.stream if self.explain is None else predictor.explain
        for batch in stream(source, bad_images, embedding=self.embeddings):
            rows = []
            for place, probabilities in enumerate(classifier.fitted.task.probabilities(batch["logits"]), start=start):
                name = source.describe(place)
                if (reason := bad_images.reasons.get(name)) is not None:
                    rows.append({"file": name, "reason": reason})
                    continue
                if not np.isfinite(probabilities).all():
                    raise RunError(f"{self.run_dir}: the model gives no finite numbers for {plain(name)}")
                best = np.argsort(-probabilities, kind="stable")
                if self.topk is None and classifier.thresholds is not None:
                    best = best[probabilities[best] >= np.array(classifier.thresholds)[best]]
                else:
                    best = best[: self.topk or 1]
                top = [{"label": classifier.class_names[i], "probability": float(probabilities[i])} for i in best]
                row = {"file": name, **(top[0] if top else {}), "top": top}
                if self.embeddings:
                    row["embedding"] = [float(x) for x in batch["embedding"][place - start]]
                if self.explain is not None:
                    shown = self.explain / f"{before + place:06}-{run_name(Path(name).stem)}.png"
                    white = 65535 if classifier.fitted.config.data.bits == 16 else 255
                    heat_picture(batch["image"][place - start] * (255 / white), batch["heat"][place - start]).save(
                        shown
                    )
                    row["explanation"] = str(shown)
                rows.append(row)
            start += len(batch["logits"])
            yield rows
