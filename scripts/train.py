"""Train an image classifier: `python scripts/train.py --technique pt`; `--help` lists every option."""

import sys

from jaxtrain.cli import main, print_config, train_command


def body() -> None:
    """One run, as the command line says."""
    config, only_print = train_command(sys.argv[1:])
    if only_print:
        print_config(config)
        return
    from jaxtrain.classifiers.files import techniques

    techniques()[config.technique](config).fit()


if __name__ == "__main__":
    main(body)
