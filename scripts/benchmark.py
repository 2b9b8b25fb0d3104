"""Compare finished runs on one test set: the same as `jaxtrain benchmark`, from a clone."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main("benchmark")
