"""Models compared on the test set."""
