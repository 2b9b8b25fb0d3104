"""Options for all tests."""

import gc
import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Fast tests spend their time compiling: compile quickly rather than well. Slow ones run as users do.

    At level 0 jax 0.10.2 makes NaN of the gradients of cnn_medium at 28 pixels: what trains that is a slow test.
    """
    if "not slow" in (config.option.markexpr or ""):
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ.setdefault("XLA_FLAGS", quick)
    # A million objects of JAX's caches live to the end: the collector need not look at them again and again.
    gc.set_threshold(100_000, 20, 1000)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def _no_store_left_to_the_next_test():
    """`mlflow.set_tracking_uri` sets the variable for the whole process, and so for every later run."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Class folders under train, val and test, of images that can be told apart."""
    from tests.data.forms import write_folder  # imports jax, which must not be before the flags above

    folder = tmp_path_factory.mktemp("images")
    write_folder(folder)
    return folder
