"""Models measured and compared on the test set; `jaxtrain.benchmark(models, data)` is the way in."""
