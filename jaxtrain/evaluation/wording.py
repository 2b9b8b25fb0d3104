"""Comparisons in words: numbers first, and never "better" without proof."""

from __future__ import annotations

import math

from jaxtrain.evaluation.comparison import Comparison, Pair
from jaxtrain.evaluation.costs import Costs
from jaxtrain.screen.terminal import clock

COSTS = {"train_seconds": "training time", "flops_per_image": "operations per image", "latency_ms_p50": "latency"}
"""Costs that advice is given about, in words."""
METRICS = {
    "accuracy": "accuracy", "top5_accuracy": "top-5 accuracy", "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision", "macro_recall": "macro recall", "macro_f1": "macro F1",
    "mcc": "Matthews correlation", "worst_class_accuracy": "worst class", "loss": "NLL", "brier": "Brier score",
    "ece": "ECE", "adaptive_ece": "adaptive ECE", "aurc": "AURC", "coverage_at_1pct_risk": "coverage at 1% risk",
    "coverage_at_5pct_risk": "coverage at 5% risk", "auroc_ovr": "AUROC", "mAP": "mAP", "micro_mAP": "micro mAP",
    "weighted_mAP": "weighted mAP", "auroc": "AUROC", "micro_auroc": "micro AUROC", "micro_f1": "micro F1",
    "micro_precision": "micro precision", "micro_recall": "micro recall", "weighted_f1": "weighted F1",
    "subset_accuracy": "all labels right", "hamming_loss": "Hamming loss", "lrap": "LRAP",
    "coverage_error": "coverage error", "label_ece": "ECE",
}  # fmt: skip
"""Names of metrics for readers."""
SHARES = (
    *("accuracy", "top5_accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"),
    *("worst_class_accuracy", "coverage_at_1pct_risk", "coverage_at_5pct_risk"),
    *("mAP", "micro_mAP", "weighted_mAP", "micro_f1", "micro_precision", "micro_recall", "weighted_f1"),
    "subset_accuracy",
)
"""Metrics that are told in percent."""


def value(name: str, number: float | None) -> str:
    """A metric as text.

    >>> value("accuracy", 0.98765), value("loss", 0.04321), value("auroc_ovr", None)
    ('98.8%', '0.043', '-')
    """
    if number is None or not math.isfinite(number):
        return "-"
    if name in SHARES:
        return f"{100 * number:.1f}%"
    return f"{number:.3f}" if abs(number) >= 0.0095 or number == 0 else f"{number:.2g}"


def cost(name: str, number: float | None) -> str:
    """A cost as text with its unit.

    >>> cost("flops_per_image", 1.234e9), cost("latency_ms_p50", 0.5), cost("train_seconds", 4000)
    ('1.23 G', '0.5 ms', '1:06:40')
    """
    if number is None or not math.isfinite(number):
        return "-"
    if name.startswith("latency_ms"):
        return f"{number:.3g} ms" if number < 1000 else f"{number:,.0f} ms"
    if name.endswith("_mb"):
        return f"{number:,.3g} MB"
    if name == "train_seconds":
        return f"{number:.3g} s" if number < 120 else _clock(number)
    return with_prefix(number)


def training_time(costs: Costs) -> str:
    """Of a run and of the weights that it started from, with a word where the latter is not known.

    >>> training_time({"train_seconds": 5}), training_time({"train_seconds": 5, "pretraining_unknown": 1.0})
    ('5 s', '5 s plus pre-training')
    """
    more = " plus pre-training" if costs.get("pretraining_unknown") else ""
    return cost("train_seconds", costs.get("train_seconds")) + more


def in_points(margin: float) -> str:
    """A share in points.

    >>> in_points(0.01), in_points(0.005)
    ('1 point', '0.5 points')
    """
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def verdict(pair: Pair, margin: float) -> str:
    """One pair in accuracy (of several labels, in mAP), as a sentence.

    The word "better" stands only where the interval, corrected for all pairs, leaves zero out and the corrected exact
    test agrees.
    """
    gap = pair.gap
    interval = f"interval [{100 * gap.corrected.low:+.1f}, {100 * gap.corrected.high:+.1f}]"
    points = f"{100 * abs(gap.difference):.1f} points"
    match pair.verdict:
        case "better":
            return f"{pair.first} is better than {pair.second} by {points}, {interval}"
        case "worse":
            return f"{pair.second} is better than {pair.first} by {points}, {interval}"
        case "equivalent":
            told = f"{pair.first} and {pair.second} are equivalent: they differ by less than {in_points(margin)}"
            return f"{told}, {interval}"
        case _:
            told = f"{pair.first} and {pair.second} cannot be told apart: {points} apart, {interval}"
            if pair.paired is not None and not gap.corrected.low <= 0 <= gap.corrected.high:
                told += f", but by the exact test it may be chance (p = {pair.paired.p_holm:.2g})"
            return told


def advice(comparison: Comparison) -> list[str]:
    """What each choice costs against the most accurate one, in numbers."""
    if comparison.recipes:
        costs = {recipe.name: recipe.costs for recipe in comparison.recipes}
        pairs, best = comparison.recipe_pairs, comparison.recipes[0].name
    else:
        costs = {entry.name: entry.candidate.costs for entry in comparison.entries}
        pairs, best = comparison.pairs, comparison.entries[0].name
    return [_choice(pair, costs[best], costs[pair.second]) for pair in pairs if pair.first == best]


def _choice(pair: Pair, costs_of_best: Costs, costs_of_other: Costs) -> str:
    gap = pair.gap
    interval = f"[{100 * gap.corrected.low:.1f}, {100 * gap.corrected.high:.1f}]"
    told = f"{pair.second} is {100 * gap.difference:.1f} points below {pair.first}, interval {interval}"
    if gap.difference == 0:
        told = f"{pair.second} is as accurate as {pair.first}, interval {interval}"
    elif gap.corrected.low <= 0 <= gap.corrected.high:
        told += " (holds zero)"
    ratios = []
    for name, words in COSTS.items():
        of_best, of_other = costs_of_best.get(name), costs_of_other.get(name)
        if of_best and of_other:
            ratios.append(f"{_ratio(of_other / of_best)} {words}")
            if name == "train_seconds":
                ratios[-1] += _uncounted(pair, costs_of_best, costs_of_other)
    return told + (f"; it takes {_listed(ratios)}" if ratios else "")


def _uncounted(pair: Pair, costs_of_best: Costs, costs_of_other: Costs) -> str:
    """What is missing in both training times of a comparison."""
    match bool(costs_of_best.get("pretraining_unknown")), bool(costs_of_other.get("pretraining_unknown")):
        case True, True:
            return " (pre-training of both not counted)"
        case False, True:
            return " plus pre-training"
        case True, False:
            return f" (pre-training of {pair.first} not counted)"
    return ""


def _ratio(factor: float) -> str:
    """As people say it, before what is compared: 1/37 of the, 2.4 times the.

    >>> _ratio(1 / 37), _ratio(2.38), _ratio(1.01), _ratio(0.8)
    ('1/37 of the', '2.4 times the', 'about the same', '0.80 of the')
    """
    if abs(factor - 1) < 0.05:
        return "about the same"
    if factor > 1:
        return f"{factor:.2g} times the" if factor < 100 else f"{factor:,.0f} times the"
    return f"1/{1 / factor:,.0f} of the" if factor < 2 / 3 else f"{factor:.2f} of the"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _clock(seconds: float) -> str:
    return clock(seconds)


def with_prefix(number: float) -> str:
    """Three digits and a prefix.

    >>> with_prefix(1.234e9), with_prefix(23_456), with_prefix(1442), with_prefix(0.07)
    ('1.23 G', '23.5 k', '1,442', '0.07')
    """
    for limit, unit, sign in ((1e12, 1e12, " T"), (1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if number >= limit:
            return f"{number / unit:.3g}{sign}"
    return f"{number:,.4g}"
