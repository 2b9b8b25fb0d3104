"""`python -m jaxtrain`: the same as `jaxtrain`."""

from jaxtrain.cli.main import main

if __name__ == "__main__":
    main()
