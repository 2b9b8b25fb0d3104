"""The embedding store: `python scripts/embed.py {list,verify,export,prune}`; `--help` after each lists its options."""

import sys

from jaxtrain.cli.main import main


def body() -> None:
    """One command on the store."""
    from jaxtrain.cli.embed import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main(body)
