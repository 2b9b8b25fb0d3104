"""Compare finished runs on one test set: `python scripts/benchmark.py RUN_DIR...`; `--help` lists every option."""

import sys

from jaxtrain.cli.main import main


def body() -> None:
    """One comparison, as the command line says."""
    from jaxtrain.cli.benchmark import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main(body)
