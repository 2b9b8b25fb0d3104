import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxtrain.heads.lbfgs import Problem, solve
from tests.marks import mostly_slow


@pytest.mark.parametrize("size", mostly_slow([0.01, 100.0], {100.0}))
def test_optimum_of_scipy_with_soft_targets_and_weights(size):
    generator = np.random.default_rng(0)
    z = np.c_[generator.standard_normal((80, 6)) * size * np.array([3, 1, 1, 0.3, 0.1, 0.0]), np.ones(80)]
    target = generator.dirichlet(np.ones(4), 80)
    weight = generator.uniform(0.1, 2, 80)
    weight /= weight.sum()
    penalties = np.array([1e-4, 1e-2, 1.0]) * size**2

    def objective(flat, l2):
        w = flat.reshape(7, 4)
        logits = z @ w
        total = np.logaddexp.reduce(logits, axis=1)
        residual = (np.exp(logits - total[:, None]) - target) * weight[:, None]
        gradient = z.T @ residual
        gradient[:-1] += l2 * w[:-1]
        return weight @ (total - (logits * target).sum(1)) + l2 / 2 * (w[:-1] ** 2).sum(), gradient.ravel()

    problem = Problem(*(jnp.asarray(array, jnp.float32) for array in (z, target[:, :, None], weight[:, None])))
    found = jax.jit(solve)(problem, jnp.asarray(penalties, jnp.float32))
    assert found.converged.all()
    for i, l2 in enumerate(penalties):
        reference = minimize(
            objective,
            np.zeros(28),
            (l2,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 10000, "ftol": 1e-15, "gtol": 1e-12},
        )
        ours, _ = objective(np.asarray(found.w[..., i], np.float64).ravel(), l2)
        assert reference.fun * (1 - 1e-7) <= ours <= reference.fun * (1 + 1e-4)
        assert float(found.objective[i]) == pytest.approx(ours, rel=1e-5)
        assert float(found.cross_entropy[i]) == pytest.approx(
            ours - l2 / 2 * float((found.w[:-1, :, i] ** 2).sum()), rel=1e-4
        )
