"""Several labels per image, through every technique: pairs of digits side by side, each a label."""

import csv
import json

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

import jaxtrain
from jaxtrain import FEClassifier, FTClassifier, PTClassifier, UserError
from jaxtrain.data.splits import few_shot
from jaxtrain.evaluation.predictions import Predictions

QUIET = {"tracking": {"enabled": False}, "quiet": True}
SMALL = {
    "model": {"name": "mlp_tiny"},
    "train": {"epochs": 4, "batch_size": 64},
    "optimizer": {"learning_rate": 0.01},
    "augment": {"policy": "none"},
    **QUIET,
}


def pairs(first, last, count, seed):
    """Two digits each, 8 x 16 pixels on 16 x 16; `int[count, 5]`, of the digits 0 to 4."""
    bunch, rng = load_digits(n_class=5), np.random.default_rng(seed)
    images = (bunch.images * 255 / 16).round().astype(np.uint8)
    places = rng.integers(first, last, (count, 2))
    canvas = np.concatenate([images[places[:, 0]], images[places[:, 1]]], axis=2)
    labels = np.zeros((count, 5), int)
    for column in range(2):
        labels[np.arange(count), bunch.target[places[:, column]]] = 1
    return np.pad(canvas, ((0, 0), (4, 4), (0, 0))), labels


TRAIN, TEST = pairs(0, 600, 700, 0), pairs(600, 900, 200, 1)


CHANCE = TEST[1].mean()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    classifier = PTClassifier(run_dir=tmp_path_factory.mktemp("run") / "run", **SMALL)
    return classifier.fit(*TRAIN, test=TEST, class_names=("zero", "one", "two", "three", "four"))


def test_pre_training_learns_and_reports_what_scikit_learn_says(trained):
    probabilities = trained.predict_proba(TEST[0])
    assert np.all((probabilities > 0) & (probabilities < 1))
    expected = average_precision_score(TEST[1], probabilities)
    assert expected > 0.8 > CHANCE + 0.3
    assert trained.summary["test_mAP"] == pytest.approx(expected)
    assert trained.summary["val_mAP"] > 0.8
    assert trained.summary["test_accuracy"] is None
    rows = [json.loads(line) for line in (trained.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("val/mAP", 0) for row in rows) == pytest.approx(trained.summary["val_mAP"])
    assert trained.fitted.config.train.monitor == "val/mAP"
    measured = json.loads((trained.run_dir / "benchmark" / "metrics.json").read_text())
    assert measured["test/mAP_low"] < measured["test/mAP"] < measured["test/mAP_high"]
    with (trained.run_dir / "benchmark" / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["label"] for row in table] == list(trained.class_names)
    for place, row in enumerate(table):
        expected = average_precision_score(TEST[1][:, place], probabilities[:, place])
        assert float(row["average_precision"]) == pytest.approx(expected)


def test_what_is_decided_follows_the_thresholds_of_validation_images(trained):
    decided = trained.predict(TEST[0])
    assert set(np.unique(decided)) <= {0, 1}
    np.testing.assert_array_equal(decided, trained.predict_proba(TEST[0]) >= np.array(trained.thresholds))
    metrics = trained.evaluate(*TEST)
    assert metrics["macro_f1"] == pytest.approx(f1_score(TEST[1], decided, average="macro"))
    assert trained.score(*TEST) == metrics["subset_accuracy"] == accuracy_score(TEST[1], decided)
    kept = Predictions.load(trained.run_dir / "benchmark" / "predictions.npz")
    assert kept.thresholds == trained.thresholds
    for i, threshold in enumerate(trained.thresholds):
        truth = kept.val_labels[:, i]
        scores = 1 / (1 + np.exp(-kept.val_logits[:, i].astype(float)))
        others = [f1_score(truth, scores >= cut) for cut in np.linspace(0.02, 0.98, 49)]
        assert f1_score(truth, scores >= threshold) >= max(others)


@pytest.mark.slow
def test_a_wanted_precision_and_one_half(trained, tmp_path):
    wanted = PTClassifier(run_dir=tmp_path / "a", decision={"precision": 0.95}, **SMALL).fit(*TRAIN)
    assert np.mean(wanted.thresholds) > np.mean(trained.thresholds)
    half = {"decision": {"threshold": "half"}, "data": {"task": "multilabel"}}
    one_hot = np.eye(5, dtype=int)[TRAIN[1].argmax(axis=1)]  # several labels where that is said
    found = PTClassifier(run_dir=tmp_path / "b", **half, **SMALL).fit(TRAIN[0], one_hot)
    assert found.thresholds == (0.5,) * 5
    assert found.predict(TEST[0]).shape == (200, 5)


def test_saved_loaded_and_not_repeated(trained, tmp_path):
    loaded = jaxtrain.load(trained.save(tmp_path / "model"))
    assert loaded.thresholds == trained.thresholds
    np.testing.assert_array_equal(loaded.predict(TEST[0]), trained.predict(TEST[0]))
    again = PTClassifier(run_dir=trained.run_dir, **SMALL).fit(*TRAIN, test=TEST, class_names=trained.class_names)
    assert again.summary == trained.summary


@pytest.mark.slow
def test_weights_of_labels_make_them_likelier(trained, tmp_path):
    file = tmp_path / "weights.yaml"
    file.write_text("two: 20\n")
    options = {**SMALL, "train": {**SMALL["train"], "pos_weight": file}}
    given = {"class_names": trained.class_names}
    weighted = PTClassifier(run_dir=tmp_path / "run", **options).fit(*TRAIN, **given)
    assert weighted.fitted.config.train.pos_weight == {"two": 20.0}
    more = weighted.predict_proba(TEST[0]).mean(axis=0) - trained.predict_proba(TEST[0]).mean(axis=0)
    assert more[2] > 0.1
    assert np.abs(np.delete(more, 2)).max() < more[2] / 2
    head = {"weight_decay": (1e-2,), "scaling": ("none",)}
    x, y = TRAIN[0].reshape(700, -1)[:, ::3] / np.float32(255), TRAIN[1]
    plain, balanced = (
        FEClassifier(head=head, train={"pos_weight": weight}, **QUIET).fit_embeddings(x, y, validation=(x, y))
        for weight in ("none", "balanced")
    )
    assert (balanced.head.logits(x) > plain.head.logits(x)).mean() > 0.9


class Stop(jaxtrain.Callback):
    def step(self, step, metrics, run):
        if step == 20:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_not_been(trained, tmp_path):
    options = {**SMALL, "checkpoint": {"every_steps": 10}}
    given = {"class_names": trained.class_names}
    with pytest.raises(KeyboardInterrupt):
        PTClassifier(run_dir=tmp_path / "run", callbacks=[Stop()], **options).fit(*TRAIN, **given)
    whole = PTClassifier(run_dir=tmp_path / "run", **options).fit(*TRAIN, **given)
    assert whole.summary["params_sha256"] == trained.summary["params_sha256"]
    assert whole.thresholds == trained.thresholds


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"loss": {"name": "asymmetric"}},
        {"loss": {"name": "focal"}},
        {"train": {"epochs": 4, "batch_size": 64, "label_smoothing": 0.1, "ema_decay": 0.9}},
        {"augment": {"policy": "none", "mixup": 0.2}},
        {"augment": {"policy": "none", "cutmix": 1.0, "test_flips": "h"}},
        {"data": {"loader": "stream", "workers": 0}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_losses_targets_and_ways_train(options, tmp_path):
    labels = TRAIN[1].copy()
    labels[::7, 2] = -1
    found = PTClassifier(run_dir=tmp_path / "run", **{**SMALL, **options}).fit(TRAIN[0], labels, test=TEST)
    assert found.summary["test_mAP"] > CHANCE + 0.25


@pytest.mark.slow
def test_unknown_labels_teach_nothing(tmp_path):
    """What stands behind an unknown entry changes no bit of what is learned."""
    labels = TRAIN[1].copy()
    unknown = np.random.default_rng(0).random(labels.shape) < 0.2
    unknown[:, 0] = True
    found = PTClassifier(run_dir=tmp_path / "run", **SMALL).fit(TRAIN[0], np.where(unknown, -1, labels))
    assert found.summary["val_mAP"] > 0
    as_nan = PTClassifier(run_dir=tmp_path / "b", **SMALL).fit(TRAIN[0], np.where(unknown, np.nan, labels))
    assert found.summary["params_sha256"] == as_nan.summary["params_sha256"]


@pytest.mark.slow
def test_lists_of_names_are_the_matrix(tmp_path):
    names = np.array(["zero", "one", "two", "three", "four"])
    lists = [names[row == 1].tolist() for row in TRAIN[1]]
    test = (TEST[0], [names[row == 1].tolist() for row in TEST[1]])
    by_names = PTClassifier(run_dir=tmp_path / "a", **SMALL).fit(TRAIN[0], lists, test=test)
    order = np.argsort(names)
    by_matrix = PTClassifier(run_dir=tmp_path / "b", **SMALL).fit(
        TRAIN[0], TRAIN[1][:, order], class_names=tuple(names[order]), test=(TEST[0], TEST[1][:, order])
    )
    assert by_names.class_names == by_matrix.class_names == tuple(by_names.classes_)
    for name in ("params_sha256", "test_mAP"):
        assert by_names.summary[name] == by_matrix.summary[name]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "norm_bias", "linear_probe"])
def test_fine_tuning(trained, strategy, tmp_path):
    how = {"linear_probe": True} if strategy == "linear_probe" else {"strategy": strategy}
    options = {"train": {"epochs": 2, "batch_size": 64}, "finetune": how, "augment": {"policy": "none"}, **QUIET}
    classifier = FTClassifier(run_dir=tmp_path / "run", model={"weights": str(trained.run_dir)}, **options)
    classifier.fit(*TRAIN, test=TEST)
    assert classifier.summary["test_mAP"] > 0.7
    assert jaxtrain.load(classifier.run_dir).thresholds == classifier.thresholds


HEADS = {
    "linear": {"scaling": ("standard",), "weight_decay": (1e-3, 1e-1)},
    "mlp": {"epochs": 3, "learning_rate": (3e-3,), "weight_decay": (1e-4,)},
    "ncm": {},
    "knn": {},
    "sklearn:gaussian_nb": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_head(trained, name, tmp_path):
    options = {"model": {"weights": str(trained.run_dir)}, "features": {"store": tmp_path / "store"}, **QUIET}
    classifier = FEClassifier(run_dir=tmp_path / "run", head={"name": name, **HEADS[name]}, **options)
    labels = TRAIN[1].copy()
    labels[::9, 1] = -1
    labels[:, 3] = 0
    classifier.fit(TRAIN[0], labels, test=TEST)
    per_label = classifier.evaluate(*TEST)
    scores = classifier.predict_proba(TEST[0])
    assert average_precision_score(TEST[1][:, [0, 1, 2, 4]], scores[:, [0, 1, 2, 4]]) > 0.6
    assert classifier.summary["test_mAP"] == per_label["mAP"]
    assert classifier.summary["val_mAP"] is not None
    assert len(set(scores[:, 3])) == 1  # nothing is known of it but how rare it is
    assert scores[0, 3] < 0.01
    loaded = jaxtrain.load(classifier.run_dir)
    np.testing.assert_array_equal(loaded.predict_logits(TEST[0]), classifier.predict_logits(TEST[0]))


def objective(truth, logits, weights):
    return np.mean(np.logaddexp(0, np.where(truth, -logits, logits))) + 1e-2 / 2 * np.sum(weights**2)


@pytest.mark.slow
def test_the_linear_head_is_one_logistic_regression_per_label(trained, tmp_path):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3)) + rng.normal(size=(300, 3)) > 0.5).astype(int)
    y[:40, 1] = -1
    head = {"weight_decay": (1e-2,), "scaling": ("none",)}
    found = FEClassifier(head=head, data={"val_fraction": 0.0}, **QUIET).fit_embeddings(x, y)
    for i in range(3):
        known = y[:, i] >= 0
        exact, truth = x.astype(float)[known], y[known, i]
        reference = LogisticRegression(C=1 / (1e-2 * known.sum()), tol=1e-9, max_iter=500).fit(exact, truth)
        kernel = found.head.arrays[f"{i}/kernel"]

        mine = objective(truth, found.head.logits(x)[known, i], kernel[:, 1] - kernel[:, 0])
        best = objective(truth, reference.decision_function(exact), reference.coef_)
        assert mine == pytest.approx(best, abs=1e-5)
    np.testing.assert_array_equal(found.predict_embeddings(x), found.head.logits(x) >= 0)


def test_few_shot_draws_hold_so_many_of_each_label(tmp_path):
    indices = few_shot(TRAIN[1], 5, seed=0)
    assert (TRAIN[1][indices].sum(axis=0) >= 5).all()
    assert len(indices) <= 25
    assert set(indices) != set(few_shot(TRAIN[1], 5, seed=0, draw=1))
    np.testing.assert_array_equal(indices, few_shot(TRAIN[1], 5, seed=0))
    rare = TRAIN[1].copy()
    rare[np.flatnonzero(rare[:, 2])[3:], 2] = 0
    with pytest.raises(ValueError, match="label 2 has 3"):
        few_shot(rare, 5, seed=0)


@pytest.mark.slow
def test_a_head_on_each_of_several_draws(trained, tmp_path):
    options = {"model": {"weights": str(trained.run_dir)}, "features": {"store": tmp_path / "store"}, **QUIET}
    head = {"weight_decay": (1e-2,), "scaling": ("none",)}
    few = FEClassifier(run_dir=tmp_path / "few", head=head, data={"shots": 8, "draws": 3}, **options)
    few.fit(*TRAIN, test=TEST)
    with (few.run_dir / "few_shot.csv").open() as file:
        tests = [float(row["test_mAP"]) for row in csv.DictReader(file)]
    assert len(set(tests)) == 3
    assert few.summary["few_shot_test_mAP"] == pytest.approx(np.mean(tests))
    assert tests[0] == pytest.approx(average_precision_score(TEST[1], few.predict_proba(TEST[0])))
    assert min(tests) > CHANCE + 0.1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": {"shots": 10_000}}, "data.shots"),
        ({"data": {"sampling": "balanced"}}, "data.sampling"),
        ({"train": {"class_weights": "balanced"}}, "train.class_weights"),
        ({"loss": {"name": "gce"}}, "loss.name"),
        ({"train": {"pos_weight": {"4": 2, "nobody": 2}}}, "train.pos_weight.*'nobody'"),
        ({"loss": {"logit_adjustment": 1.0}}, "loss.logit_adjustment"),
        ({"train": {"monitor": "val/accuracy"}}, "did you mean 'val/"),
        ({"data": {"task": "multiclass"}}, "data.task multiclass"),
    ],
)
def test_what_several_labels_cannot_have_is_refused_first(options, told, tmp_path):
    with pytest.raises(UserError, match=told):
        PTClassifier(run_dir=tmp_path / "run", **{**SMALL, **options}).fit(*TRAIN)
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_one_class_per_image_refuses_what_is_for_several(tmp_path):
    classes = TRAIN[1].argmax(axis=1)
    with pytest.raises(UserError, match="decision"):
        PTClassifier(run_dir=tmp_path / "a", decision={"recall": 0.9}, **SMALL).fit(TRAIN[0], classes)
    with pytest.raises(UserError, match=r"train\.pos_weight"):
        PTClassifier(run_dir=tmp_path / "a", **{**SMALL, "train": {"pos_weight": "balanced"}}).fit(TRAIN[0], classes)
    with pytest.raises(UserError, match=r"train\.pos_weight.*asymmetric"):
        PTClassifier(loss={"name": "asymmetric"}, train={"pos_weight": "balanced"})
    with pytest.raises(UserError, match=r"data\.task multilabel"):
        PTClassifier(run_dir=tmp_path / "b", data={"task": "multilabel"}, **SMALL).fit(TRAIN[0], classes)


def test_wrong_labels_are_refused_in_one_line(trained):
    one_hot = np.eye(5, dtype=int)[TRAIN[1].argmax(axis=1)]
    for labels, told in (
        (one_hot, "one-hot.*data.task multilabel"),
        (TRAIN[1] * 2, "the value 2"),
        (TRAIN[1][1:], "700 images and 699 labels"),
    ):
        with pytest.raises(UserError, match=told):
            PTClassifier(**SMALL).fit(TRAIN[0], labels)
    for labels, told in (
        (TEST[1][:, :3], "3 columns"),
        ([["zero", "five"]] * 200, "'five'"),
        (TEST[1][:, 0], "several"),
    ):
        with pytest.raises(UserError, match=told):
            trained.evaluate(TEST[0], labels)


def test_scikit_learn_clones_and_knows_it_as_multilabel(trained):
    assert clone(trained).config == trained.config
    assert trained.__sklearn_tags__().classifier_tags.multi_label


def test_an_image_that_cannot_be_read_is_unknown(trained, tmp_path):
    from PIL import Image

    Image.fromarray(TEST[0][0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = trained.predict([tmp_path / "good.png", tmp_path / "bad.png"])
    np.testing.assert_array_equal(found[1], [-1] * 5)
    np.testing.assert_array_equal(found[0], trained.predict(TEST[0][:1])[0])


@pytest.fixture(scope="module")
def compared(trained, tmp_path_factory):
    weaker = PTClassifier(**{**SMALL, "model": {"name": "linear"}, "train": {"epochs": 2, "batch_size": 64}})
    folder = tmp_path_factory.mktemp("weaker")
    weaker = weaker.set_params(run_dir=folder / "run").fit(*TRAIN, class_names=trained.class_names)
    report = jaxtrain.benchmark({"good": trained, "weak": weaker}, TEST, costs=False, resamples=300)
    return report, weaker, report.save(folder / "report")


def test_the_report_ranks_by_mean_average_precision(trained, compared):
    report, weaker, folder = compared
    rows = {row["model"]: row for row in report.rows()}
    for name, model in (("good", trained), ("weak", weaker)):
        assert rows[name]["mAP"] == pytest.approx(average_precision_score(TEST[1], model.predict_proba(TEST[0])))
        assert rows[name]["mAP_low"] < rows[name]["mAP"] < rows[name]["mAP_high"]
    (pair,) = report.comparison.pairs
    gap = pair.gaps["mAP"]
    assert (pair.first, pair.verdict) == ("good", "better")
    assert gap.difference == pytest.approx(rows["good"]["mAP"] - rows["weak"]["mAP"])
    assert gap.corrected.low > 0
    assert gap.p_holm < 0.01
    right = [(model.predict(TEST[0]) == TEST[1]).all(axis=1) for model in (trained, weaker)]
    assert pair.paired.only_first == (right[0] & ~right[1]).sum()
    page = (folder / "report.html").read_text()
    assert "good is better than weak" in page
    assert "all labels right" in page
    assert ">nan" not in page
    json.loads((folder / "results.json").read_text())


def test_the_report_shows_labels_and_mistakes(trained, compared):
    report, _, _ = compared
    by_label = [part for part in report.slices if part.column.startswith("label")]
    assert {part.value for part in by_label} == set(trained.class_names)
    for part in by_label:
        place = trained.class_names.index(part.value)
        value, interval = part.accuracy["good"]
        expected = average_precision_score(TEST[1][:, place], trained.predict_proba(TEST[0])[:, place])
        assert value == pytest.approx(expected)
        assert interval.low <= value <= interval.high
    wrong = (trained.predict(TEST[0]) != TEST[1]).any(axis=1)
    assert report.worst
    assert all(wrong[shown.index] for shown in report.worst)
    assert all(shown.label.split(" ")[0] in ("has", "not") for shown in report.label_errors)


def test_the_report_shows_which_labels_come_together_and_are_confused(trained, compared):
    from jaxtrain.evaluation import comparison_plots

    report, _, folder = compared
    page = (folder / "report.html").read_text()
    assert "Labels that images have together" in page
    assert "Errors by label of good" in page
    figure = comparison_plots.labels_together(report.comparison)
    shares = np.asarray(figure.axes[0].images[0].get_array())
    both = TEST[1].T @ TEST[1]
    np.testing.assert_allclose(shares, both / np.diag(both)[:, None])
    entry = report.comparison.entries[1]
    shares = np.asarray(comparison_plots.label_errors(entry).axes[0].images[0].get_array())
    truth, given = TEST[1], entry.predicted
    for i in range(5):
        mine = truth[:, i] == 1
        assert shares[i, i] == pytest.approx((~given[mine, i]).mean())
        for j in {0, 1, 2, 3, 4} - {i}:
            assert shares[i, j] == pytest.approx((given[mine, j] & (truth[mine, j] == 0)).mean())
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [f"{name} ({count})" for name, count in zip(trained.class_names, TEST[1].sum(axis=0), strict=True)]


def test_a_wrong_label_is_found(trained):
    labels = TEST[1].copy()
    sure = int(np.abs(trained.predict_logits(TEST[0])).min(axis=1).argmax())
    labels[sure, 2] = 1 - labels[sure, 2]
    report = jaxtrain.benchmark({"one": trained}, (TEST[0], labels), costs=False, duplicates=False, resamples=100)
    assert sure in [shown.index for shown in report.label_errors[:5]]


def test_models_whose_labels_are_in_another_order_are_aligned(trained, compared, tmp_path):
    from jaxtrain.evaluation.comparison import aligned

    report, _, _ = compared
    like = report.comparison.entries[0].candidate.predictions
    order = np.array([3, 1, 4, 0, 2])
    other = Predictions(
        ids=like.ids,
        labels=np.ascontiguousarray(like.labels[:, order]),
        logits=np.ascontiguousarray(like.logits[:, order]),
        class_names=tuple(np.array(like.class_names)[order].tolist()),
        thresholds=tuple(np.array(like.thresholds)[order].tolist()),
        **{name: getattr(like, name) for name in ("test_digest", "params_sha256", "technique", "model", "dataset")},
    )
    other.save(tmp_path / "other.npz")
    back = aligned(Predictions.load(tmp_path / "other.npz"), like, "other", "like")
    np.testing.assert_array_equal(back.labels, like.labels)
    np.testing.assert_array_equal(back.logits, like.logits)
    assert back.thresholds == like.thresholds


def test_predict_prints_every_label_that_an_image_gets(trained, tmp_path, capsys):
    from PIL import Image

    from jaxtrain.cli.main import run

    decided = trained.predict(TEST[0])
    for place in range(40):
        Image.fromarray(TEST[0][place]).save(tmp_path / f"{place:02}.png")
    run(["predict", str(trained.run_dir), str(tmp_path)])
    for line, row in zip(capsys.readouterr().out.splitlines(), decided[:40], strict=True):
        _, *cells = line.split("\t")
        names = {trained.class_names[i] for i in np.flatnonzero(row)}
        assert set(cells[::2]) == (names or {"no label"})


@pytest.mark.slow
def test_the_exported_program_says_what_it_gives(trained, tmp_path):
    from jaxtrain.classifiers.export import export_stablehlo

    folder = export_stablehlo(trained, tmp_path / "out")
    about = json.loads((folder / "model.json").read_text())
    assert (about["task"], tuple(about["thresholds"])) == ("multilabel", trained.thresholds)


@pytest.mark.slow
def test_the_mlflow_model_gives_the_labels_of_each_image(tmp_path):
    import mlflow

    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False}
    options = {**SMALL, "train": {"epochs": 1, "batch_size": 64}, "tracking": tracking}
    trained = PTClassifier(run_dir=tmp_path / "run", **options).fit(*TRAIN, test=TEST)
    mlflow.set_tracking_uri(tracking["uri"])
    experiment = mlflow.get_experiment_by_name("PT").experiment_id
    (found,) = mlflow.search_logged_models(experiment_ids=[experiment], output_format="list")
    table = mlflow.pyfunc.load_model(found.model_uri).predict(TEST[0][:20, ..., None])
    names = np.array(trained.class_names)
    assert table["labels"].tolist() == [names[row == 1].tolist() for row in trained.predict(TEST[0][:20])]
    np.testing.assert_allclose(np.stack(table["probabilities"]), trained.predict_proba(TEST[0][:20]), atol=1e-6)


def test_the_command_compares_finished_runs(trained, tmp_path, capsys, monkeypatch):
    from jaxtrain.cli.main import run

    monkeypatch.chdir(tmp_path)
    quick = ["--skip-costs", "True", "--skip-duplicates", "True", "--tracking.enabled", "False", "--resamples", "100"]
    run(["benchmark", str(trained.run_dir), "--out", str(tmp_path / "report"), *quick])
    assert f"{100 * trained.summary['test_mAP']:.1f}%" in capsys.readouterr().out
    assert "mAP" in (tmp_path / "report" / "report.md").read_text()
