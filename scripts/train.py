"""Train an image classifier: `python scripts/train.py --technique pt`; `--help` lists every option."""

import sys

from jaxtrain.cli import main, print_config, train_command


def body() -> None:
    """One run, as the command line says."""
    config, only_print = train_command(sys.argv[1:])
    if only_print:
        from jaxtrain.classifiers.resolve import resolve
        from jaxtrain.data.sources import load_dataset

        print_config(resolve(config, load_dataset(config.data)))
        return
    from jaxtrain.classifiers.files import techniques

    techniques()[config.technique](config).fit()


if __name__ == "__main__":
    main(body)
