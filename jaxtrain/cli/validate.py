"""`jaxtrain validate`: any weights measured on any set of images, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from jaxtrain.cli.benchmark import Benchmark
from jaxtrain.cli.command import Command
from jaxtrain.cli.workers import workers_of
from jaxtrain.config import DataConfig, StoreConfig, WorkersConfig

if TYPE_CHECKING:
    from jaxtrain.cluster.pool import Workers

_OF_TRAINING = {
    *("val_fraction", "max_train_images", "shots", "draws", "loader", "device_budget_mb"),
    *("sampling", "sampling_beta", "folds", "fold"),
}


class Validate(Command):
    """Measure weights with a classification head on a set of images, without training.

    They become an entry of the Benchmark like that of a finished run, which `jaxtrain benchmark` compares with others.
    Classes are matched by name, by WordNet id, or by place where the weights have no names; of a set with some of their
    classes alone only these logits count.
    """

    examples = (
        "validate --weights hf:timm/resnet50.a1_in1k --data.name folder:imagenet/val --data.split train",
        "validate --weights model.safetensors --data.name csv:real.csv --data.task any_of",
    )

    weights: str
    """hf:ORG/NAME[@REVISION], package:NAME, the path of a .safetensors, .npz or .pth file, or a folder of one."""
    model_name: str | None = None
    """Network of the weights, where they do not say."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; auto: bfloat16 on accelerators."""
    classes: Path | None = None
    """JSON, YAML or CSV file with the weights' class, by name or place, for each class of the set."""
    data: Annotated[DataConfig, Field(validate_default=True)] = DataConfig()
    """The set to measure on."""
    out: Path | None = None
    """Folder for the report (default: runs/benchmark/DATASET-N)."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples; fewer than 100 are too few for an interval."""
    seed: int = 0
    """Seed of the resamples."""
    skip_costs: bool = False
    """Do not measure latency, throughput, operations and memory."""
    robustness: bool = False
    """Measure accuracy under corruptions too: 50 times the work."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    tracking: StoreConfig = StoreConfig()
    cluster: WorkersConfig = WorkersConfig()

    @field_validator("data")
    @classmethod
    def _named(cls, data: DataConfig) -> DataConfig:
        if "name" not in data.model_fields_set:
            raise ValueError("data.name is missing: which images to measure on")
        if idle := _OF_TRAINING & data.model_fields_set:
            raise ValueError(f"data.{min(idle)} has no effect where nothing is trained")
        return data

    def run(self) -> None:
        """Write the weights as a finished run, and compare it alone."""
        with workers_of(self.cluster) as workers:
            self._validate(workers)

    def _validate(self, workers: Workers | None) -> None:
        from jaxtrain.classifiers.validation import weights_as_run
        from jaxtrain.screen.console import print_line
        from jaxtrain.training.parallel import check_devices

        check_devices()
        path = weights_as_run(self.weights, self.data, model=self.model_name, classes=self.classes, dtype=self.dtype)
        if not self.quiet:
            print_line(f"weights   {path}")
        shared = {"out", "resamples", "seed", "skip_costs", "robustness", "quiet", "tracking"}
        Benchmark(runs=(path,), skip_duplicates=True, **{name: getattr(self, name) for name in shared}).compare(workers)
