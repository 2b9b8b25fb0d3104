"""Label image files with a trained model: `python scripts/predict.py RUN_DIR IMAGE...`."""

import argparse
from pathlib import Path

from jaxtrain.cli.main import main


def body() -> None:
    """One line an image: file, label, probability."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="run directory, or a folder written by save()")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    arguments = parser.parse_args()
    import numpy as np

    from jaxtrain import load
    from jaxtrain.data.base import FileSource
    from jaxtrain.errors import UserError

    for path in arguments.images:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    classifier = load(arguments.run_dir)
    source = FileSource(arguments.images, np.zeros(len(arguments.images), np.int32))
    for path, row in zip(arguments.images, classifier.predict_proba(source), strict=True):
        best = row.argmax()
        print(f"{path}\t{classifier.class_names[best]}\t{row[best]:.4f}")


if __name__ == "__main__":
    main(body)
