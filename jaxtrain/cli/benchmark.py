"""`jaxtrain benchmark`: finished runs compared, reported and tracked."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator, model_validator

from jaxtrain.cli.command import Command, Positional
from jaxtrain.cli.workers import predicting_on, workers_of
from jaxtrain.config import DataConfig, StoreConfig, TrackingConfig, WorkersConfig
from jaxtrain.errors import RunError, UserError

if TYPE_CHECKING:
    from jaxtrain.cluster.pool import Workers

# As many as fit 80 columns beside the names; the report has them all.
_SHOWN = ("macro_f1", "ece", "label_ece")
_MAX_LINES = 25
"""On the screen, of models and of comparisons; the report has them all."""
_OF_TRAINING = {
    *("val_fraction", "max_train_images", "shots", "draws", "loader", "device_budget_mb", "workers", "prefetch"),
    *("sampling", "sampling_beta"),
    *("image_size", "mean", "std", "crop_pct", "interpolation"),  # each model has its own
}
"""Options of a data set that have no effect on a test set."""


class Benchmark(Command):
    """Compare finished runs on one test set.

    Predictions that are kept in the run directories are not computed again.
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN_DIR")] = ()
    """Directories of finished runs (default: all under runs/, a report for each test set)."""
    out: Path | None = None
    """Folder for the report (default: runs/benchmark/DATASET-N)."""
    margin: Annotated[float, Field(gt=0, lt=100)] = 1.0
    """Accuracies that differ by fewer points than this count as equivalent."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples; fewer than 100 are too few for an interval."""
    seed: int = 0
    """Seed of the resamples."""
    skip_costs: bool = False
    """Do not measure latency, throughput, operations and memory."""
    costs_again: bool = False
    """Measure costs again that are kept, where the machine was busy or another program has changed them."""
    skip_duplicates: bool = False
    """Do not look for test images that are nearly in the training or validation set."""
    robustness: bool = False
    """Measure accuracy under corruptions too: 50 times the work."""
    explain: bool = False
    """Show heat maps beside the worst mistakes of the best model: what in the picture spoke for its answer."""
    champion: Annotated[str, Field(pattern=r"^[^/:']+$", max_length=200)] | None = None
    """A registered model of MLflow whose alias `champion` moves to the best model, if it is significantly better."""
    trust_imports: bool = False
    """Import networks and classes that the runs name (module:Name): they are executed, so only for runs that you trust.
    """
    quiet: bool = False
    """Print nothing but warnings and errors."""
    data: DataConfig | None = None
    """Another test set than that of the runs."""
    tracking: StoreConfig = StoreConfig()
    cluster: WorkersConfig = WorkersConfig()

    @field_validator("data")
    @classmethod
    def _named(cls, data: DataConfig | None) -> DataConfig | None:
        if data is not None and "name" not in data.model_fields_set:
            raise ValueError("data.name is missing: these options are for another test set than that of the runs")
        if data is not None and (idle := _OF_TRAINING & data.model_fields_set):
            raise ValueError(f"data.{min(idle)} has no effect on a test set")
        return data

    @model_validator(mode="after")
    def _costs_or_none(self) -> Benchmark:
        if self.skip_costs and self.costs_again:
            raise ValueError("--skip-costs and --costs-again: give one of them")
        return self

    def run(self) -> None:
        """Compare, write the report, track it, and print what matters: once for each test set.

        RunError at the end where a run was left out because it is damaged.
        """
        with workers_of(self.cluster) as workers:
            self.compare(workers)

    def compare(self, workers: Workers | None) -> None:
        """The same, with workers for the predictions that are not kept."""
        from jaxtrain.evaluation.finished import by_test_set, finished_runs, leaving_out

        if self.champion is not None and not self.runs:
            raise UserError("--champion: give the runs to compare")
        left_out: dict[str, str] = {}
        groups = [list(self.runs)] if self.runs else by_test_set(finished_runs(), self.data, left_out)
        if self.out is not None and len(groups) > 1:
            raise UserError(f"--out: the runs have {len(groups)} test sets, a report each; give run directories of one")
        for paths in groups:
            with leaving_out(f"a group of {len(paths)}", left_out) if len(groups) > 1 else nullcontext():
                self._compare(paths, left_out, workers)
        if left_out:
            raise RunError(f"left out, see the warnings: {', '.join(left_out)}")

    def _compare(self, paths: list[Path], left_out: dict[str, str], workers: Workers | None) -> None:
        import jaxtrain
        from jaxtrain.evaluation.champion import check_title, crown
        from jaxtrain.evaluation.comparison import compare
        from jaxtrain.evaluation.explained import check_explainable, explained
        from jaxtrain.evaluation.runs import gather, load_each, make_report, track, track_report
        from jaxtrain.files import numbered_folder, optional
        from jaxtrain.screen.console import print_line
        from jaxtrain.tracking.champion import Championship
        from jaxtrain.training.parallel import check_devices

        check_devices()
        title = None if self.champion is None else Championship(self.tracking.uri, self.champion)
        if title is not None:
            check_title(paths, title)
        say = (lambda text: None) if self.quiet else print_line
        tracking = TrackingConfig(**self.tracking.model_dump())
        load = partial(jaxtrain.load, trust_imports=self.trust_imports)
        costs = not self.skip_costs
        with predicting_on(workers, load, trust_imports=self.trust_imports) as predicting:
            gathered = gather(
                paths,
                load,
                data=self.data,
                costs=costs,
                costs_again=self.costs_again,
                say=say,
                predicting=predicting,
            )
        comparison = compare(gathered.candidates, margin=self.margin / 100, resamples=self.resamples, seed=self.seed)
        models = {candidate.name: candidate.run_dir for candidate in gathered.candidates}
        corrupted = load_each(gathered, models, load) if self.robustness else {}
        if self.explain:
            check_explainable(gathered)
        report = make_report(
            gathered, comparison, columns={}, duplicates=not self.skip_duplicates, corrupted=corrupted, say=say
        )
        if self.explain:
            best = comparison.entries[0].name
            with optional(f"heat maps of {best}"):
                report = explained(report, load(Path(models[best] or "")))
        folder = report.save(self.out or numbered_folder(Path("runs/benchmark"), comparison.predictions.dataset))
        ids = track(gathered, comparison, tracking)
        with optional("the report in MLflow"):
            track_report(report, folder, tracking, ids)
        if not self.quiet:
            _show(report, folder, tracking)
        if title is not None:
            say(crown(gathered, comparison, title))
        left_out.update(gathered.left_out)


def _show(report, folder: Path, tracking: TrackingConfig) -> None:  # type: ignore[no-untyped-def]
    from jaxtrain.evaluation.wording import METRICS, cost, training_time, value
    from jaxtrain.screen.console import print_line, show_table
    from jaxtrain.tracking.store import tracking_uri
    from jaxtrain.tracking.tracker import look

    rows = []
    for entry in report.comparison.entries:
        measured, costs = entry.measured, entry.candidate.costs
        figure = report.comparison.figure
        low, high = measured.intervals[figure]
        row = {
            "model": entry.name,
            METRICS[figure]: value(figure, entry.score),
            "95%": f"{100 * low:.1f}-{100 * high:.1f}",
        }
        row |= {METRICS[name]: value(name, measured.metrics[name]) for name in _SHOWN if name in measured.metrics}
        row |= {"training": training_time(costs), "latency": cost("latency_ms_p50", costs.get("latency_ms_p50"))}
        rows.append(row)
    print_line("")
    show_table(rows[:_MAX_LINES], right=set(rows[0]) - {"model"})
    _say_the_rest(rows, "models", folder / "leaderboard.csv")
    print_line("")
    for line in (*report.warnings, *report.advice[:_MAX_LINES]):
        print_line(line)
    _say_the_rest(report.advice, "comparisons", folder / "report.md")
    print_line("")
    print_line(f"report    {folder / 'report.html'}")
    if tracking.enabled:
        uri = tracking_uri(tracking.uri)
        print_line(f"MLflow    {look(uri)}")


def _say_the_rest(lines: Sized, what: str, where: Path) -> None:
    from jaxtrain.screen.console import print_line

    if (more := len(lines) - _MAX_LINES) > 0:
        print_line(f"and {more:,} more {what}: {where}")
