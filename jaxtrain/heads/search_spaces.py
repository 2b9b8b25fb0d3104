"""What Optuna may vary of well-known classifiers, as a table; others are fitted with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Trial(Protocol):
    """What is used of `optuna.Trial`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """A whole number."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of several."""


@dataclass(frozen=True)
class Real:
    """A number between two."""

    low: float
    high: float
    log: bool = True

    def suggest(self, trial: Trial, name: str) -> float:
        """Drawn by the trial."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Whole:
    """A whole number between two, both included."""

    low: int
    high: int
    log: bool = True

    def suggest(self, trial: Trial, name: str) -> int:
        """Drawn by the trial."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)


class Choice(tuple[Any, ...]):
    """One of several."""

    def suggest(self, trial: Trial, name: str) -> Any:
        """Drawn by the trial."""
        return trial.suggest_categorical(name, tuple(self))


@dataclass(frozen=True)
class Space:
    """Options that are tuned, options that are set, and whether scaling of the vectors is tuned too."""

    tuned: Mapping[str, Real | Whole | Choice] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    scaled: bool = False


_FOREST = Space(
    tuned={"max_features": Choice(("sqrt", "log2", 0.1, 0.3)), "min_samples_leaf": Whole(1, 20)},
    fixed={"n_estimators": 300, "n_jobs": -1},
)
SPACES: Mapping[str, Space] = {
    "LogisticRegression": Space({"C": Real(1e-4, 1e4)}, {"max_iter": 2000}, scaled=True),
    "LinearSVC": Space({"C": Real(1e-5, 1e2)}, {"max_iter": 5000}, scaled=True),
    "SVC": Space({"C": Real(1e-2, 1e3), "kernel": Choice(("rbf", "linear"))}, scaled=True),
    "NuSVC": Space({"nu": Real(0.01, 0.5)}, scaled=True),
    "RidgeClassifier": Space({"alpha": Real(1e-3, 1e5)}, scaled=True),
    "SGDClassifier": Space(
        {"alpha": Real(1e-7, 1e-1), "loss": Choice(("log_loss", "modified_huber", "hinge"))}, scaled=True
    ),
    "KNeighborsClassifier": Space(
        {
            "n_neighbors": Whole(1, 50),
            "weights": Choice(("uniform", "distance")),
            "metric": Choice(("euclidean", "cosine")),
        },
        {"n_jobs": -1},
        scaled=True,
    ),
    "RadiusNeighborsClassifier": Space(fixed={"outlier_label": "most_frequent"}, scaled=True),
    "MLPClassifier": Space({"alpha": Real(1e-6, 1e-1), "learning_rate_init": Real(1e-4, 1e-2)}, scaled=True),
    "GaussianNB": Space({"var_smoothing": Real(1e-12, 1.0)}),
    "LinearDiscriminantAnalysis": Space({"shrinkage": Real(0.0, 1.0, log=False)}, {"solver": "lsqr"}),
    "QuadraticDiscriminantAnalysis": Space({"reg_param": Real(0.0, 1.0, log=False)}),
    "DecisionTreeClassifier": Space({"max_depth": Whole(2, 30), "min_samples_leaf": Whole(1, 50)}),
    "RandomForestClassifier": _FOREST,
    "ExtraTreesClassifier": _FOREST,
    "GradientBoostingClassifier": Space(
        {"learning_rate": Real(0.02, 0.3), "n_estimators": Whole(50, 200), "max_depth": Whole(2, 5, log=False)},
        {"max_features": "sqrt"},
    ),
    "HistGradientBoostingClassifier": Space(
        {
            "learning_rate": Real(0.02, 0.3),
            "max_iter": Whole(50, 400),
            "max_leaf_nodes": Whole(4, 64),
            "l2_regularization": Real(1e-6, 10.0),
        }
    ),
    "XGBClassifier": Space(
        {
            "learning_rate": Real(0.02, 0.3),
            "n_estimators": Whole(50, 400),
            "max_depth": Whole(2, 8, log=False),
            "min_child_weight": Real(0.1, 20.0),
            "subsample": Real(0.5, 1.0, log=False),
            "colsample_bytree": Real(0.2, 1.0, log=False),
            "reg_lambda": Real(1e-2, 1e2),
        },
        {"tree_method": "hist"},
    ),
}
