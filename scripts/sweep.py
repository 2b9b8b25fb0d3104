"""Train every setting of a sweep: `python scripts/sweep.py configs/sweeps/NAME.yaml`; `--help` lists the options."""

import sys

from jaxtrain.cli.main import main


def body() -> None:
    """One sweep, as its file says."""
    from jaxtrain.cli.sweep import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main(body)
