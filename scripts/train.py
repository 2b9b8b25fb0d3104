"""Train an image classifier: the same as `jaxtrain train`, from a clone."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main("train")
