"""What Optuna may vary of well-known classifiers, as a table; others are fitted with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def _real(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def _whole(low: int, high: int) -> IntDistribution:
    return IntDistribution(low, high, log=True)


@dataclass(frozen=True)
class Space:
    """Options that are tuned, options that are set, and whether scaling of the vectors is tuned too."""

    tuned: Mapping[str, BaseDistribution] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    scaled: bool = False


_FOREST = Space(
    tuned={"max_features": CategoricalDistribution(("sqrt", "log2", 0.1, 0.3)), "min_samples_leaf": _whole(1, 20)},
    fixed={"n_estimators": 300, "n_jobs": -1},
)
SPACES: Mapping[str, Space] = {
    "LogisticRegression": Space({"C": _real(1e-4, 1e4)}, {"max_iter": 2000}, scaled=True),
    "LinearSVC": Space({"C": _real(1e-5, 1e2)}, {"max_iter": 5000}, scaled=True),
    "SVC": Space({"C": _real(1e-2, 1e3), "kernel": CategoricalDistribution(("rbf", "linear"))}, scaled=True),
    "NuSVC": Space({"nu": _real(0.01, 0.5)}, scaled=True),
    "RidgeClassifier": Space({"alpha": _real(1e-3, 1e5)}, scaled=True),
    "SGDClassifier": Space(
        {"alpha": _real(1e-7, 1e-1), "loss": CategoricalDistribution(("log_loss", "modified_huber", "hinge"))},
        scaled=True,
    ),
    "KNeighborsClassifier": Space(
        {
            "n_neighbors": _whole(1, 50),
            "weights": CategoricalDistribution(("uniform", "distance")),
            "metric": CategoricalDistribution(("euclidean", "cosine")),
        },
        {"n_jobs": -1},
        scaled=True,
    ),
    "RadiusNeighborsClassifier": Space(fixed={"outlier_label": "most_frequent"}, scaled=True),
    "MLPClassifier": Space({"alpha": _real(1e-6, 1e-1), "learning_rate_init": _real(1e-4, 1e-2)}, scaled=True),
    "GaussianNB": Space({"var_smoothing": _real(1e-12, 1.0)}),
    "LinearDiscriminantAnalysis": Space({"shrinkage": FloatDistribution(0.0, 1.0)}, {"solver": "lsqr"}),
    "QuadraticDiscriminantAnalysis": Space({"reg_param": FloatDistribution(0.0, 1.0)}),
    "DecisionTreeClassifier": Space({"max_depth": _whole(2, 30), "min_samples_leaf": _whole(1, 50)}),
    "RandomForestClassifier": _FOREST,
    "ExtraTreesClassifier": _FOREST,
    "GradientBoostingClassifier": Space(
        {"learning_rate": _real(0.02, 0.3), "n_estimators": _whole(50, 200), "max_depth": IntDistribution(2, 5)},
        {"max_features": "sqrt"},
    ),
    "HistGradientBoostingClassifier": Space(
        {
            "learning_rate": _real(0.02, 0.3),
            "max_iter": _whole(50, 400),
            "max_leaf_nodes": _whole(4, 64),
            "l2_regularization": _real(1e-6, 10.0),
        }
    ),
    "XGBClassifier": Space(
        {
            "learning_rate": _real(0.02, 0.3),
            "n_estimators": _whole(50, 400),
            "max_depth": IntDistribution(2, 8),
            "min_child_weight": _real(0.1, 20.0),
            "subsample": FloatDistribution(0.5, 1.0),
            "colsample_bytree": FloatDistribution(0.2, 1.0),
            "reg_lambda": _real(1e-2, 1e2),
        },
        {"tree_method": "hist"},
    ),
}
