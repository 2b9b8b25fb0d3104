"""`head.init`: a linear head that starts from vectors of the classes' names, as the text tower of CLIP or SigLIP gives.

At its start the logit of a class is `SCALE` times the cosine between the image's embedding and the class's vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import open_npz
from jaxtrain.errors import UserError, nearest
from jaxtrain.heads.base import Floats

SCALE = 100.0
"""Where CLIP's learned scale ends, which is not let any higher (Radford et al. 2021, arXiv 2103.00020, section 2.5)."""
_WRITE = "write one with numpy.savez(FILE, embeddings=float[classes, width], class_names=[NAME, ...])"


def class_kernel(path: Path, class_names: Sequence[str], width: int, projection: Floats | None = None) -> Floats:
    """The kernel `float32[width, classes]` of a linear head on vectors of scaling l2 that starts from a file.

    Args:
        path: an npz file of `embeddings` `float[classes, width]` and `class_names`, in any order.
        class_names: the data set's; the file has to have these and no others.
        width: of the images' embeddings.
        projection: `float32[width, other]`, from the images' embeddings into the space that they share with the names';
            a file of that other width is carried back through it. The cosine is then up to a factor of each image.

    Raises:
        UserError: there is no such file, or it holds anything else.
    """
    vectors, names = _read(path)
    where = f"head.init: {path}"
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or names.dtype.kind != "U" or names.shape != vectors.shape[:1]:
        raise UserError(
            f"{where}: embeddings are {vectors.dtype}{list(vectors.shape)} and class_names "
            f"{names.dtype.name}{list(names.shape)}; {_WRITE}"
        )
    places = {name: place for place, name in enumerate(names.tolist())}
    missing, unknown = (sorted(a - b) for a, b in ((set(class_names), set(places)), (set(places), set(class_names))))
    if missing:
        raise UserError(f"{where}: class_names lack {', '.join(missing[:5])}; {nearest(missing[0], places)}")
    if unknown:
        raise UserError(f"{where}: the data has no class {unknown[0]!r}; {nearest(unknown[0], class_names)}")
    if len(places) < len(names):
        raise UserError(f"{where}: class_names has a name twice")
    vectors = vectors[[places[name] for name in class_names]].astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise UserError(f"{where}: embeddings hold NaN, infinity, or a vector of zeros")
    vectors /= lengths
    if projection is not None and vectors.shape[1] == projection.shape[1] != width:
        vectors = vectors @ projection.T * np.sqrt(width) / np.linalg.norm(projection)
    if vectors.shape[1] != width:
        also = "" if projection is None else f", or {projection.shape[1]} as the projection of the weights has"
        raise UserError(f"{where}: embeddings are of width {vectors.shape[1]}; images have {width}{also}")
    return (vectors.T * SCALE / np.sqrt(width)).astype(np.float32)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with open_npz(path, "file of class embeddings", _WRITE, packed=False) as file:
            return file["embeddings"], file["class_names"]
    except FileNotFoundError:
        raise UserError(f"head.init: there is no {path}; {_WRITE}") from None
