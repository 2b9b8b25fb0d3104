"""Send MLflow what it lacks of runs that have ended: `python scripts/sync_mlflow.py runs/PT/NAME ...`."""

import sys

from jaxtrain.cli.main import main


def body() -> None:
    """Every run that is named."""
    from jaxtrain.cli.sync import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main(body)
