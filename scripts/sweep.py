"""Train every setting of a sweep: the same as `jaxtrain sweep`, from a clone."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main("sweep")
