"""The embedding store: `python scripts/embed.py {list,verify,export,prune}`; `--help` after each lists its options."""

import sys

from jaxtrain.cli import main


def body() -> None:
    """One command on the store."""
    from jaxtrain.embed_cli import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main(body)
