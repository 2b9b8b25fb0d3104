"""Options for all tests."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Fast tests spend their time compiling: compile quickly rather than well. Slow ones run as users do.

    Not at level 0: there jax 0.10.2 makes NaN of the gradients of some convolutional networks.
    """
    if "not slow" in (config.option.markexpr or ""):
        quick = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
        os.environ.setdefault("XLA_FLAGS", quick)
