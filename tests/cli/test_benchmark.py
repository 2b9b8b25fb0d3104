from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.cli.main import run
from jaxtrain.errors import UserError
from jaxtrain.evaluation import costs
from jaxtrain.tracking import stored_run
from jaxtrain.tracking.store import connect


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "SECONDS", 0.01)
    monkeypatch.setattr(costs, "BATCHES", (1, 8))
    return tmp_path


def train(name, seed, tracked=False, **options):
    PTClassifier(
        name=name,
        seed=seed,
        quiet=True,
        tracking={"enabled": tracked, "system_metrics": False, "log_model": False},
        model={"name": "linear"},
        train={"steps": 30, "batch_size": 64},
        **options,
    ).fit()


OFF = ("--tracking.enabled", "False", "--resamples", "100")


@pytest.mark.slow
def test_runs_are_compared_and_predictions_reused(here, capsys):
    for seed in range(2):
        train(f"linear-{seed}", seed)
    kept = {path: path.stat().st_mtime_ns for path in here.glob("runs/pt/*/benchmark/predictions.npz")}
    assert len(kept) == 2
    capsys.readouterr()
    run(["benchmark", "runs/pt/linear-0", "runs/pt/linear-1", *OFF])
    printed = capsys.readouterr().out
    assert "runs/benchmark/digits-1/report.html" in printed
    assert "pt/linear-0" in printed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    results = json.loads(Path("runs/benchmark/digits-1/results.json").read_text())
    assert sorted(model["model"] for model in results["models"]) == ["pt/linear-0", "pt/linear-1"]
    assert results["recipes"][0]["members"]
    assert results["looks"] == 2
    summary = json.loads(Path("runs/pt/linear-0/summary.json").read_text())
    by_name = {model["model"]: model for model in results["models"]}
    assert by_name["pt/linear-0"]["accuracy"] == summary["test_accuracy"]
    run(["benchmark", *OFF, "--out", "elsewhere", "--skip-costs", "--skip-duplicates", "--quiet"])
    assert capsys.readouterr().out == ""
    assert len(json.loads(Path("elsewhere/results.json").read_text())["models"]) == 2


@pytest.mark.slow
def test_without_arguments_each_test_set_gets_a_report(here, capsys):
    train("linear-0", 0)
    rng = np.random.default_rng(0)
    for name, test in (("tested", {"x_test": np.zeros((9, 8, 8), "u1"), "y_test": np.arange(9) % 3}), ("untested", {})):
        np.savez(f"{name}.npz", x_train=rng.integers(0, 256, (90, 8, 8), np.uint8), y_train=np.arange(90) % 3, **test)
        train(name, 0, data={"name": f"npz:{name}.npz"})
    run(["benchmark", *OFF, "--skip-costs", "--skip-duplicates"])
    printed = capsys.readouterr()
    assert printed.out.count("report.html") == 2
    with pytest.raises(UserError, match="--out: the runs have 2 test sets"):
        run(["benchmark", *OFF, "--out", "elsewhere"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds no finished run"),
        (["nowhere"], "nowhere: no run is there"),
        (["--margin", "0"], "margin: must be greater than 0"),
        (["--resamples", "7"], "resamples: must be greater than or equal to 100"),
        (["--data.image-size", "32"], "data.name"),
        (["--resample", "7"], "--resamples"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(here, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        run(["benchmark", *arguments])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_benchmark_has_one_run_a_model_that_leads_back_to_its_training(here):
    import mlflow

    for seed in range(2):
        train(f"linear-{seed}", seed, tracked=True)
    run(["benchmark", "--resamples", "100", "--quiet"])
    mlflow.set_tracking_uri(f"sqlite:///{here / 'mlflow.db'}")
    table = mlflow.search_runs(experiment_names=["Benchmark"])
    models = table[table["tags.kind"] == "evaluation"]
    training = mlflow.search_runs(experiment_names=["PT"])
    assert len(models) == len(training) == 2
    assert set(models["tags.source_run_id"]) == set(training["run_id"])
    names = ("accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1", "mcc", "loss", "brier", "ece", "auroc_ovr")
    for name in names:
        for column in (f"metrics.test/{name}", f"metrics.test/{name}_low", f"metrics.test/{name}_high"):
            assert models[column].notna().all(), column
    assert models["metrics.cost/latency_ms_p50"].notna().all()
    (comparison,) = table[table["tags.kind"] == "comparison"].to_dict("records")
    assert set(comparison["tags.evaluations"].split()) == set(models["run_id"])
    artifacts = [file.path for file in mlflow.MlflowClient().list_artifacts(comparison["run_id"])]
    assert "report.html" in artifacts


@pytest.mark.slow
def test_the_champion_changes_only_where_the_difference_is_real(here, capsys):
    for name, steps, seed in (("weak", 1, 0), ("good", 150, 0), ("alike", 150, 1)):
        PTClassifier(
            name=name, seed=seed, quiet=True, tracking={"system_metrics": False}, model={"name": "linear"},
            train={"steps": steps, "batch_size": 64},
        ).fit()  # fmt: skip
    options = ("--champion", "digits", "--skip-costs", "--skip-duplicates", "--resamples", "200")

    def compare(*names):
        capsys.readouterr()
        run(["benchmark", *(f"runs/pt/{name}" for name in names), *options])
        told = capsys.readouterr().out.splitlines()[-1]
        found = connect(f"sqlite:///{here}/mlflow.db").get_model_version_by_alias("digits", "champion")
        return told, {stored_run(Path("runs/pt") / name): name for name in names}.get(found.run_id)

    assert compare("weak") == ("digits: pt/weak is champion now, version 1", "weak")
    with pytest.raises(UserError, match="--champion digits"):
        compare("good", "alike")
    told, champion = compare("weak", "good")
    assert (champion, told) == ("good", "digits: pt/good is champion now, version 2")
    told, champion = compare("weak", "good", "alike")
    assert champion == "good"
    assert "version" not in told
    with pytest.raises(UserError, match="--champion"):
        run(["benchmark", *options])
    with pytest.raises(UserError, match="--champion other"):
        run(["benchmark", "runs/pt/weak", *options, "--champion", "other", "--tracking.uri", "sqlite:////proc/none.db"])
