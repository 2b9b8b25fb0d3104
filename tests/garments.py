"""Pictures with several labels, made honestly: two or three garments of Fashion-MNIST on one canvas.

The labels are what was placed. Debian's package dataset-fashion-mnist has the files.
"""

from pathlib import Path

import numpy as np

from jaxtrain.data.idx import read_idx

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def garments(part, count, seed):
    """`uint8[count, 56, 56]` and `int[count, 10]`; `part`: train or t10k, which share no garment.

    Each garment has a quarter of the canvas to itself, drawn by lot; there may be two of a kind.
    """
    images, kinds = (read_idx(FOLDER / f"{part}-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    rng = np.random.default_rng(seed)
    canvas, labels = np.zeros((count, 2, 2, 28, 28), np.uint8), np.zeros((count, 10), int)
    for place in range(count):
        chosen = rng.choice(len(images), rng.integers(2, 4), replace=False)
        quarters = rng.permutation(4)[: len(chosen)]
        canvas[place, quarters // 2, quarters % 2] = images[chosen]
        labels[place, kinds[chosen]] = 1
    return canvas.swapaxes(2, 3).reshape(count, 56, 56), labels
