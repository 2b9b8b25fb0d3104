"""The commands of the program `jaxtrain`. Nothing heavy is imported here."""

from __future__ import annotations

from jaxtrain.cli.audit import Audit
from jaxtrain.cli.benchmark import Benchmark
from jaxtrain.cli.command import Group
from jaxtrain.cli.completion import Completion
from jaxtrain.cli.embed import EMBED
from jaxtrain.cli.export import Export
from jaxtrain.cli.models import Models
from jaxtrain.cli.pack import Pack
from jaxtrain.cli.plan import Plan
from jaxtrain.cli.predict import Predict
from jaxtrain.cli.report import Report
from jaxtrain.cli.sweep import Sweep
from jaxtrain.cli.sync import Sync
from jaxtrain.cli.train import Recipes, Train
from jaxtrain.cli.validate import Validate

PROGRAM = Group(
    "Train image classifiers: feature extraction, fine-tuning, pre-training from scratch.",
    {
        "train": Train,
        "predict": Predict,
        "benchmark": Benchmark,
        "validate": Validate,
        "report": Report,
        "sweep": Sweep,
        "audit": Audit,
        "embed": EMBED,
        "pack": Pack,
        "plan": Plan,
        "export": Export,
        "sync": Sync,
        "models": Models,
        "recipes": Recipes,
        "completion": Completion,
    },
)
