"""What a report is about: a comparison, its test set, and what both give to think about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.evaluation import findings, label_findings
from jaxtrain.evaluation.comparison import Comparison, Entry
from jaxtrain.evaluation.findings import Shown, Slice
from jaxtrain.evaluation.near_duplicates import NearDuplicate
from jaxtrain.evaluation.wording import advice, verdict

RARE = 30
"""Test images: labels that fewer have are named in a warning. With 20 of each label mAP was 0.03 too high on average in
simulations, with 10 of each 0.06; the intervals held the true value."""

MANY_SETTINGS = 5
"""Of one sweep: that many on a test set suggest that one is chosen by it. A sweep itself measures two."""


@dataclass(frozen=True)
class Content:
    """A comparison, and what is known of its test set."""

    comparison: Comparison
    images: ImageSource | None = None
    """The test images; None where they are gone: then no image is shown."""
    dataset: Dataset | None = None
    duplicates: Mapping[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Test images that are also in the training or validation set, see `find_duplicates`."""
    near: Mapping[str, list[NearDuplicate] | None] = field(default_factory=dict)
    """Those that nearly do; None where there were too many images to look."""
    looks: int | None = None
    """How many models were measured on this test set so far."""
    sweeps: Mapping[str, int] = field(default_factory=dict)
    """How many settings of each sweep, by its folder."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Models that could not be measured, with the reason."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values by which the test set is sliced, one an image."""
    robustness: Mapping[str, Any] = field(default_factory=dict)
    """Accuracy under corruptions by model, see `jaxtrain.evaluation.robustness`."""
    heat: Mapping[int, str] = field(default_factory=dict)
    """Heat maps of the worst mistakes, as data URIs, by place in the test set, see `jaxtrain.evaluation.explained`."""
    heat_is: str = ""
    """What those maps are, in words."""

    @property
    def _findings(self) -> Any:
        """For one class per image, or for several labels."""
        return label_findings if self.comparison.predictions.multilabel else findings

    @cached_property
    def worst(self) -> list[Shown]:
        """The worst mistakes of the most accurate model."""
        return self._findings.worst_mistakes(self.comparison, self.comparison.entries[0])

    @cached_property
    def label_errors(self) -> list[Shown]:
        """Images whose label may be wrong."""
        return self._findings.likely_label_errors(self.comparison)

    @cached_property
    def disagreements(self) -> list[tuple[Entry, Entry, list[Shown]]]:
        """Of the most accurate model and its best rival, each: images that it alone has right."""
        best, rival = self.comparison.entries[0], rival_of(self.comparison)
        if rival is None:
            return []
        pairs = [(best, rival), (rival, best)]
        return [(one, other, self._findings.disagreements(self.comparison, one, other)) for one, other in pairs]

    @cached_property
    def slices(self) -> list[Slice]:
        """Accuracy by class and by column."""
        return self._findings.slices(self.comparison, self.columns)

    @property
    def advice(self) -> list[str]:
        """What each choice costs against the most accurate one."""
        return advice(self.comparison)

    @property
    def verdicts(self) -> list[str]:
        """Every pair in one sentence."""
        return [verdict(pair, self.comparison.margin) for pair in self.comparison.pairs]

    @cached_property
    def warnings(self) -> list[str]:
        """What speaks against trusting the figures."""
        comparison, found = self.comparison, [f"{name} is left out: {why}" for name, why in self.left_out.items()]
        found += [f"{entry.name}: {note}" for entry in comparison.entries for note in entry.candidate.predictions.notes]
        images = len(comparison.predictions.labels)
        for name, pairs in self.duplicates.items():
            if pairs:
                found.append(f"{len(pairs)} of {images:,} test images are also in the {name} set: figures are too good")
        if self.looks is not None and self.looks > 20:
            found.append(
                f"{self.looks} models were measured on this test set: the best of that many looks better than it is"
            )
        for folder, count in self.sweeps.items():
            if count >= MANY_SETTINGS:
                found.append(
                    f"{count} settings of the sweep {Path(folder).name} were measured on this test set: one that is "
                    "chosen by it looks better than it is; choose on validation images, as the sweep does"
                )
        few = [entry.name for entry in comparison.entries if np.count_nonzero(~entry.correct) < 10]
        if few:
            found.append(
                f"fewer than ten mistakes of {', '.join(few)}: intervals other than those of accuracy may be too narrow"
            )
        found += self._rare_labels()
        if images < 100:
            found.append(f"{images} test images can hardly tell models apart")
        return found

    def _rare_labels(self) -> list[str]:
        """Of several labels: where figures are too good."""
        predictions = self.comparison.predictions
        if not predictions.multilabel:
            return []
        support = np.count_nonzero(predictions.labels == 1, axis=0)
        rare = [f"{predictions.class_names[i]} ({support[i]})" for i in np.flatnonzero(support < RARE)]
        if not rare:
            return []
        shown = ", ".join(rare[:10]) + (f" and {len(rare) - 10} more" if len(rare) > 10 else "")
        return [
            f"fewer than {RARE} test images have the label {shown}: average precision over that few is too high on "
            "average, for which its interval allows"
        ]


def rival_of(comparison: Comparison) -> Entry | None:
    """Whom the most accurate model is best compared with: the next of another recipe, else simply the next."""
    first, *rest = comparison.entries
    recipe = first.candidate.recipe
    others = [entry for entry in rest if recipe is None or entry.candidate.recipe != recipe]
    return next(iter(others or rest), None)
