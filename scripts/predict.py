"""Label image files with a trained model: the same as `jaxtrain predict`, from a clone."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main("predict")
