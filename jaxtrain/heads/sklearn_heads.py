"""Any classifier of scikit-learn, and XGBoost, as a head: tuned with Optuna on validation, kept without pickle."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from jaxtrain.config import HeadConfig, chosen
from jaxtrain.errors import RunError, UserError
from jaxtrain.heads import estimators
from jaxtrain.heads.base import UNSEEN, Arrays, FittedHead, Floats, Task, check_vectors, choose, needs_validation
from jaxtrain.heads.measure import even, measure
from jaxtrain.heads.scaling import fit_scaling
from jaxtrain.heads.search_spaces import SPACES, Space
from jaxtrain.readers import reading

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EstimatorHead(FittedHead):
    """Logits are log-probabilities, or decision values where the classifier has no probabilities.

    Decision values are divided by a temperature fitted on validation (Guo et al. 2017), so that losses mean something.
    """

    follows: ClassVar = ("temperature",)

    estimator: Any

    @property
    def name(self) -> str:
        """The name under which this head is asked for in the config."""
        return self.settings["name"]

    def logits(self, x: Floats) -> Floats:
        """float32[images, features] to float32[images, classes].

        Raises:
            UserError: `x` has another width, or holds NaN or infinity.
        """
        check_vectors(x, "vectors", self.num_features)
        with reading("the head", f"{self.name} classifier", "train it again"):
            scores = _scores(self.estimator, _scaled(self.arrays, x))
        result = np.full((len(x), self.num_classes), UNSEEN, np.float32)
        result[:, self.arrays["present"]] = scores / self.settings["temperature"]
        return result


def check(config: HeadConfig) -> None:
    """UserError where there is no such classifier, or its package is not installed."""
    estimators.find(_short(config.name))


def load(name: str, classes: int, features: int, settings: Any, curve: Any, arrays: Arrays) -> EstimatorHead:
    """The saved head; raises as `estimators.load` does."""
    if settings["name"] != name:
        raise ValueError(f"its settings are of {settings['name']}")
    estimator = estimators.load(_short(name), arrays["estimator"])
    return EstimatorHead(classes, features, settings, curve, arrays, estimator)


def fit(config: HeadConfig, task: Task) -> EstimatorHead:
    """Tries the classifier's defaults, then what Optuna's TPE sampler says, and keeps the best on validation."""
    maker = _Maker(config.name, task)
    trials = chosen(config.trials) if maker.space.tuned or maker.space.scaled else 1
    needs_validation(trials, task)
    best, curve = _search(maker, config, trials)
    if config.refit:
        task.check()
        best = _Maker(config.name, task.joined())(best.options, best.temperature)
    settings = {"name": config.name, "temperature": best.temperature, **best.options}
    scaling = fit_scaling(best.options.get("scaling", "none"), best.task.train.x)
    arrays: Arrays = {
        "estimator": estimators.dump(best.estimator),
        "present": best.task.present,
        "mean": np.asarray(scaling.mean),
        "scale": np.asarray(scaling.scale),
    }
    size = (task.num_classes, task.train.x.shape[1])
    return EstimatorHead(*size, settings, curve, arrays, best.estimator)


@dataclass(frozen=True)
class _Tried:
    """A fitted setting."""

    options: dict[str, Any]
    temperature: float
    estimator: Any
    task: Task
    entry: dict[str, Any]


class _Maker:
    """Fits a classifier with options on a task's vectors, and measures it."""

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task = name, task
        self.type = estimators.find(_short(name))
        self.space = SPACES.get(self.type.__name__, Space())

    def __call__(self, options: dict[str, Any], temperature: float | None = None) -> _Tried:
        task = self.task
        scaling = fit_scaling(options.get("scaling", "none"), task.train.x)
        arrays = {"mean": scaling.mean, "scale": scaling.scale}
        estimator = self._make({name: value for name, value in options.items() if name != "scaling"})
        train, labels = _scaled(arrays, task.train.x), task.places(task.train.y)
        fit_options = self._weights()
        try:
            estimator.fit(train, labels, **fit_options)
            measured = {"train": (_scores(estimator, train), labels, task.sample_weights())}
            if task.val is not None:
                scores = _scores(estimator, _scaled(arrays, task.val.x))
                measured["val"] = (scores, task.places(task.val.y), even(task.val))
        except Exception as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"{self.name} could not be fitted with {options or 'its defaults'}: {cause}") from error
        if temperature is None:
            temperature = 1.0 if hasattr(estimator, "predict_proba") else _temperature(*list(measured.values())[-1])
        entry: dict[str, Any] = {**options, "temperature": temperature}
        for split, (scores, places, weights) in measured.items():
            loss, accuracy = measure(scores / np.float32(temperature), places, weights)
            entry |= {f"{split}_loss": float(loss), f"{split}_accuracy": float(accuracy)}
        return _Tried(options, temperature, estimator, task, entry)

    def defaults(self, tuned: Mapping[str, Any]) -> dict[str, Any]:
        """The classifier's own values of what is tuned."""
        return {name: "none" if name == "scaling" else self.type().get_params()[name] for name in tuned}

    def _make(self, options: dict[str, Any]) -> Any:
        known = self.type().get_params()
        seed = {"random_state": self.task.seed} if "random_state" in known else {}
        return self.type(**{**seed, **self.space.fixed, **options})

    def _weights(self) -> dict[str, Any]:
        if self.task.train.w is None and (self.task.class_weights == self.task.class_weights[0]).all():
            return {}
        from sklearn.utils.validation import has_fit_parameter

        if not has_fit_parameter(self.type, "sample_weight"):
            told = f"{self.name} takes no weights (train.class_weights, train.pos_weight)"
            raise UserError(f"{told}: choose another head")
        return {"sample_weight": self.task.sample_weights() * len(self.task.train.y)}


def _search(maker: _Maker, config: HeadConfig, trials: int) -> tuple[_Tried, list[dict[str, Any]]]:
    """The best setting, and the figures of all."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=maker.task.seed))
    started = time.monotonic()
    tuned = dict(maker.space.tuned)
    if maker.space.scaled:
        tuned["scaling"] = CategoricalDistribution(("none", "standard"))
    best, curve, failed = None, list[dict[str, Any]](), list[RunError]()
    for number in range(trials):
        if number and config.seconds is not None and time.monotonic() - started >= config.seconds:
            break
        maker.task.check()
        trial = study.ask(tuned) if number else None  # first the defaults, of which Optuna need not know
        try:
            tried = maker(maker.defaults(tuned) if trial is None else trial.params)
        except RunError as error:
            failed.append(error)
            if trial is not None:
                study.tell(trial, state=TrialState.FAIL)
            continue
        curve.append(tried.entry)
        if best is None or choose(curve, config.choose_by) == len(curve) - 1:
            best = tried
        if trial is not None:
            figure = tried.entry["val_loss"] if config.choose_by == "loss" else -tried.entry["val_accuracy"]
            study.tell(trial, figure)
    if best is None:
        raise failed[0]
    if failed:
        _log.warning("%d of %d settings failed; the first: %s", len(failed), len(failed) + len(curve), failed[0])
    return best, curve


def _short(name: str) -> str:
    return name.removeprefix("sklearn:")


def _scaled(arrays: Any, x: Floats) -> Floats:
    return (x - arrays["mean"]) * arrays["scale"]


def _scores(estimator: Any, x: Floats) -> Floats:
    """float32[images, classes]: log-probabilities, else decision values."""
    if hasattr(estimator, "predict_log_proba"):
        with np.errstate(divide="ignore"):
            scores = estimator.predict_log_proba(x)
    elif hasattr(estimator, "predict_proba"):
        with np.errstate(divide="ignore"):
            scores = np.log(estimator.predict_proba(x))
    else:
        scores = estimator.decision_function(x)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return scores.astype(np.float32)
    return np.maximum(np.nan_to_num(scores, nan=UNSEEN, neginf=UNSEEN), UNSEEN).astype(np.float32)


def _temperature(scores: Floats, y: NDArray[np.int32], weights: Floats) -> float:
    """What the scores are best divided by: the least cross-entropy."""
    from scipy.optimize import minimize_scalar

    seen = y >= 0

    def loss(log_temperature: float) -> float:
        return float(measure(scores[seen] / np.float32(np.exp(log_temperature)), y[seen], weights[seen])[0])

    return float(np.exp(minimize_scalar(loss, bounds=(-10, 10), method="bounded").x))
