"""The embedding store: the same as `jaxtrain embed`, from a clone."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main("embed")
