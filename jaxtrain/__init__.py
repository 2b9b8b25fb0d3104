"""Train image classifiers in JAX and Flax."""
