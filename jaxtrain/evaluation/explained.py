"""Heat maps beside the worst mistakes of a report: what in the picture spoke for the class that the model gave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.data.bad_images import BadImages
from jaxtrain.errors import UserError
from jaxtrain.evaluation.gallery import heat_thumbnail
from jaxtrain.evaluation.report import Report
from jaxtrain.evaluation.runs import Gathered


def check_explainable(gathered: Gathered) -> None:
    """Raises UserError where there is no one model whose mistakes could be explained, or no image."""
    if any(candidate.folds for candidate in gathered.candidates):
        raise UserError("explain: heat maps are those of one model, and here the folds of several are one entry")
    if gathered.test is None:
        raise UserError("explain: the test images cannot be found")


def explained(report: Report, model: Any) -> Report:
    """The report with a heat map for each of its worst mistakes; `model` is the classifier that made them.

    Raises UserError for a model that cannot be explained (`jaxtrain.runs.fitted.Predictor.explain`).
    """
    places = [shown.index for shown in report.worst]
    if report.images is None or not places:
        return report
    predictor, data = model.fitted.predictor, model.fitted.config.data
    source, bad_images = report.images.select(np.array(places, np.int64)), BadImages(allowed=None, named=False)
    scale, heat = 255 / (65535 if data.bits == 16 else 255), dict[int, str]()
    remaining = iter(places)
    for part in predictor.explain(source, bad_images, embedding=False):
        for image, map_of_image in zip(part["image"], part["heat"], strict=True):
            place = next(remaining)
            if np.isfinite(map_of_image).all():  # NaN of an image that cannot be read
                heat[place] = heat_thumbnail(image * scale, map_of_image)
    return replace(report, heat=heat, heat_is=predictor.explained_by())
