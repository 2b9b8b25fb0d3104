"""Train an image classifier: `python scripts/train.py --technique pt`; `--help` lists every option."""

import sys

from jaxtrain.cli.main import main, print_config, train_command


def body() -> None:
    """One run, as the command line says."""
    config, action = train_command(sys.argv[1:])
    from jaxtrain.classifiers.files import TECHNIQUES

    classifier = TECHNIQUES[config.technique](config)
    if action in ("smoke", "debug"):
        from jaxtrain.classifiers.rehearsal import REHEARSALS

        REHEARSALS[action](classifier)
    elif action == "print_config":
        from jaxtrain.data.sources import load_dataset

        print_config(classifier.resolve(config, load_dataset(classifier.data_config)))
    else:
        classifier.fit()


if __name__ == "__main__":
    main(body)
