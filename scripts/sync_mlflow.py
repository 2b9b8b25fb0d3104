"""Send MLflow what it lacks of runs that have ended: the same as `jaxtrain sync`, from a clone."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main("sync")
