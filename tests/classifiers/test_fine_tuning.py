"""Every strategy from Python: what trains and what does not, where it starts, and what is kept."""

import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxtrain import FEClassifier, FTClassifier, PTClassifier, UserError, load
from jaxtrain.classifiers.starting_point import record
from jaxtrain.config import Config
from jaxtrain.data.arrays import from_arrays
from jaxtrain.models.weights import Adapted, load_pretrained
from jaxtrain.runs.setup import prepare
from jaxtrain.training.inference import Inference
from jaxtrain.training.parallel import make_strategy
from jaxtrain.training.technique import Binding
from tests.marks import mostly_slow

OFF = {"enabled": False}
TRAIN = {"steps": 12, "batch_size": 64, "log_every": 1}
RATE = {"learning_rate": 1e-2}

# strategy: (backbone, options, which parts of the network train)
STRATEGIES = {
    "full": ("cnn", {}, {"blocks/0", "blocks/1", "head"}),
    "head": ("cnn", {"strategy": "head"}, {"head"}),
    "blocks": ("cnn", {"strategy": "blocks"}, {"blocks/1", "head"}),
    "layer_decay": ("vit", {"layer_decay": 0.5}, {"patch_embed", "blocks/0", "blocks/1", "norm", "head"}),
    "gradual": ("vit", {"unfreeze_steps": 5}, {"blocks/1", "norm", "head"}),
    "linear_probe": ("cnn", {"linear_probe": True}, {"blocks/0", "blocks/1", "head"}),
    "lora": ("vit", {"strategy": "lora", "lora_rank": 2}, {"blocks/0", "blocks/1", "head"}),
    "norm_bias": ("vit", {"strategy": "norm_bias"}, {"patch_embed", "blocks/0", "blocks/1", "norm", "head"}),
    "l2_sp": ("vit", {"l2_sp": 0.1}, {"patch_embed", "blocks/0", "blocks/1", "norm", "head"}),
    "frozen_statistics": ("cnn", {"freeze_statistics": True}, {"blocks/0", "blocks/1", "head"}),
}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return (bunch.images * 255 / 16).round().astype(np.uint8), bunch.target


@pytest.fixture(scope="module")
def backbones(digits, tmp_path_factory):
    """Run directories of networks that have seen the digits 0 to 4."""
    images, labels = digits
    small = labels < 5
    folder = tmp_path_factory.mktemp("pt")
    for name, model in {"cnn": {"name": "cnn_tiny"}, "vit": {"name": "vit_test", "patch_size": 4}}.items():
        options = {"model": model, "train": {"steps": 60, "batch_size": 64}, "optimizer": {"learning_rate": 5e-3}}
        PTClassifier(run_dir=folder / name, quiet=True, tracking=OFF, **options).fit(images[small], labels[small])
    return folder


@pytest.fixture(scope="module")
def big(digits):
    """Images and labels of the digits 5 to 9, few of them."""
    images, labels = digits
    places = np.flatnonzero(labels >= 5)[:300]
    return images[places], labels[places]


def tuner(weights, folder, **options):
    options = {"train": TRAIN, "optimizer": RATE, "augment": {"policy": "none"}, **options}
    model = {"weights": str(weights), **options.pop("model", {})}
    return FTClassifier(run_dir=folder, quiet=True, tracking=OFF, model=model, **options)


def leaves(weights):
    """Every array of the network by its path."""
    flat = {}
    for part in ("params", "frozen", "model_state"):
        for path, leaf in jax.tree_util.tree_flatten_with_path(weights[part])[0]:
            flat["/".join(str(entry.key) for entry in path)] = np.asarray(leaf)
    return flat


def moved(after, before):
    """Parts of the network (blocks one by one) with a parameter that is not what it was."""
    found = set()
    for path, leaf in after.items():
        if path.split("/")[-1] in ("mean", "var") or np.array_equal(leaf, before.get(path)):
            continue
        names = path.split("/")
        found.add("/".join(names[:2]) if names[0] == "blocks" else names[0])
    return found


def records(run_dir, name):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


@pytest.mark.parametrize(
    "strategy",
    mostly_slow(STRATEGIES, {"head", "lora"}),
)
def test_a_strategy_learns_and_moves_what_it_should(strategy, backbones, big, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the embedding store is under the working directory
    backbone, options, expected = STRATEGIES[strategy]
    classifier = tuner(backbones / backbone, tmp_path / "run", finetune=options).fit(*big)
    before, after = leaves(load(backbones / backbone).fitted.weights), leaves(classifier.fitted.weights)
    assert set(before) == set(after)
    trained = moved(after, before)
    assert expected <= trained <= expected | {"pos_embed", "cls_token"}
    losses = records(tmp_path / "run", "train/loss")
    assert np.mean(losses[-3:]) < 0.985 * losses[0]
    if strategy != "linear_probe":
        assert losses[0] == pytest.approx(np.log(5), abs=1e-5)  # the head starts at 0
    summary = classifier.summary
    assert summary["strategy"] == options.get("strategy", "full")
    assert summary["weights_sha256"] == classifier.pretrained.digest
    assert (summary["trainable_params"] < summary["params"]) == ("strategy" in options)
    np.testing.assert_array_equal(load(tmp_path / "run").predict_logits(big[0]), classifier.predict_logits(big[0]))


@pytest.mark.parametrize(
    ("steps", "options", "told"),
    [
        (5, {}, ["in 12 steps 1 of 2 blocks join"]),
        (11, {}, ["in 12 steps 0 of 2 blocks join"]),
        (3, {}, []),
        (5, {"strategy": "blocks", "blocks": 1}, []),
    ],
)
def test_blocks_that_never_join_are_told(steps, options, told, backbones, big, tmp_path, caplog):
    dataset = from_arrays(*big, config=Config().data)
    classifier = tuner(backbones / "vit", tmp_path / "run", finetune={"unfreeze_steps": steps, **options})
    classifier.resolve(classifier.config, dataset)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(told)
    assert all(text in message for text, message in zip(told, messages, strict=True))


def prepared(classifier, big):
    """Everything up to the first step, with the pre-trained weights in place."""
    dataset = from_arrays(*big, config=classifier.data_config)
    return prepare(classifier.bind(classifier.resolve(classifier.config, dataset)), dataset)[1]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_head_alone_has_optimizer_state_and_the_frozen_rest_is_never_copied(backbones, big, tmp_path):
    setup = prepared(tuner(backbones / "cnn", tmp_path / "run", finetune={"strategy": "head"}), big)
    head = size(setup.state.params)
    assert head == 16 * 5 + 5
    counters = sum(leaf.ndim == 0 for leaf in jax.tree.leaves(setup.state.opt_state))
    assert size(setup.state.opt_state) == 2 * head + counters  # AdamW's two moments

    from jaxtrain.training.meter import compile_step

    step = compile_step(setup.step, setup.feed, setup.strategy, 1)
    state = setup.strategy.place(setup.state)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.frozen)]
    state, _ = step(state, *setup.feed.args(0))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.frozen)] == places


@pytest.mark.slow
def test_what_is_frozen_needs_less_memory(backbones, big, tmp_path):

    used = {}
    for strategy in ("full", "head"):
        setup = prepared(tuner(backbones / "cnn", tmp_path / strategy, finetune={"strategy": strategy}), big)
        step = setup.step

        def one(state, *args, step=step, feed=setup.feed):
            return step(state, feed.batch(state.step, *args))

        compiled = jax.jit(one, donate_argnums=0).lower(setup.state, *setup.feed.args(0)).compile()
        used[strategy] = compiled.memory_analysis().temp_size_in_bytes
    assert used["head"] < 0.7 * used["full"]


def test_lora_trains_less_than_two_percent_of_vit_s():
    classifier = FTClassifier(
        model={"name": "vit_small_patch16_224", "dtype": "float32"},
        data={"image_size": 224, "channels": 3},
        finetune={"strategy": "lora", "lora_rank": 4, "lora_alpha": 8.0},
    )
    technique = classifier.bind(classifier.config, Binding(10, training=True))
    shapes = Inference(technique, make_strategy(technique.config.parallel)).network.shapes
    trained, frozen = shapes["params"], shapes["frozen"]
    assert size(frozen) + 384 * 10 + 10 == 21_669_514  # timm's count with ten classes
    assert size(trained) == 12 * 4 * (384 + 1152 + 384 + 384 + 384 + 1536 + 1536 + 384) + 384 * 10 + 10
    assert size(trained) < 0.02 * (size(trained) + size(frozen))


@pytest.mark.slow
def test_merged_updates_give_the_logits_that_validation_saw(backbones, big, tmp_path):
    options = {"strategy": "lora", "lora_rank": 2, "lora_alpha": 8.0}
    classifier = tuner(backbones / "vit", tmp_path / "run", finetune=options, train={**TRAIN, "select": "last"})
    classifier.fit(big[0][:200], big[1][:200], validation=(big[0][200:], big[1][200:]))
    assert not any("lora" in path for path in leaves(classifier.fitted.weights))
    seen = records(tmp_path / "run", "val/loss")[-1]
    assert classifier.evaluate(big[0][200:], big[1][200:])["loss"] == pytest.approx(seen, rel=1e-4)


@pytest.mark.slow
def test_statistics_move_where_their_layer_trains(backbones, big, tmp_path):
    before = leaves(load(backbones / "cnn").fitted.weights)
    for options, expected in [
        ({"strategy": "blocks"}, {"blocks/1"}),
        ({"strategy": "head"}, set()),
        ({"unfreeze_steps": 1}, set()),
        ({"unfreeze_steps": 1, "freeze_statistics": False}, {"blocks/0", "blocks/1"}),
        ({"strategy": "head", "freeze_statistics": False}, {"blocks/0", "blocks/1"}),
    ]:
        folder = tmp_path / "-".join(map(str, options.values()))
        train = {"steps": 2, "batch_size": 32}
        after = leaves(tuner(backbones / "cnn", folder, finetune=options, train=train).fit(*big).fitted.weights)
        changed = {
            path for path in after if path.endswith(("mean", "var")) and not np.array_equal(after[path], before[path])
        }
        assert {path.rsplit("/", 2)[0] for path in changed} == expected


def test_a_frozen_backbone_embeds_as_before(backbones, big, tmp_path):
    classifier = tuner(backbones / "cnn", tmp_path / "run", finetune={"strategy": "head"}).fit(*big)
    np.testing.assert_allclose(classifier.embed(big[0][:9]), load(backbones / "cnn").embed(big[0][:9]), rtol=1e-5)


@pytest.mark.slow
def test_the_probed_head_is_the_one_of_feature_extraction(backbones, big, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"train": {"steps": 1, "batch_size": 32}, "optimizer": {"learning_rate": 1e-9}}
    options["finetune"] = {"linear_probe": True, "head_learning_rate": 1e-9, "freeze_statistics": True}
    tuned = tuner(backbones / "cnn", tmp_path / "ft", **options).fit(*big)
    head = {"scaling": ("none", "standard")}
    model = {"weights": str(backbones / "cnn")}
    extracted = FEClassifier(run_dir=tmp_path / "fe", quiet=True, tracking=OFF, model=model, head=head).fit(*big)
    assert extracted.summary["cache_hit"]
    np.testing.assert_allclose(tuned.predict_logits(big[0]), extracted.predict_logits(big[0]), atol=1e-3)


@pytest.mark.slow
def test_the_head_is_probed_also_where_tests_see_flipped_images(backbones, big, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"finetune": {"linear_probe": True}, "augment": {"policy": "none", "test_flips": "h"}}
    tuned = tuner(backbones / "cnn", tmp_path / "run", train={"steps": 1, "batch_size": 32}, **options).fit(*big)
    assert tuned.config.augment.test_flips == "h"


@pytest.mark.slow
def test_the_head_comes_along_for_the_same_classes(backbones, digits, tmp_path):
    images, labels = digits
    few = np.flatnonzero(labels < 5)[:200]
    train = {"steps": 1, "batch_size": 32, "log_every": 1}
    tuner(backbones / "cnn", tmp_path / "run", train=train).fit(images[few], labels[few])
    assert records(tmp_path / "run", "train/loss")[0] < 1.3  # log 5 is 1.6


@pytest.mark.slow
def test_what_was_changed_in_the_weights_is_told(backbones, big, tmp_path, caplog):
    tuner(backbones / "vit", tmp_path / "run", train={"steps": 1, "batch_size": 32}, data={"image_size": 12}).fit(*big)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in told if str(backbones) in line] == [
        f"{backbones / 'vit'}: position embeddings resized from 5 to 10 places"
    ]
    assert "for other classes" in json.loads((tmp_path / "run" / "weights.json").read_text())["head"]


def test_a_run_that_begins_again_does_not_repeat_what_was_changed(backbones, tmp_path, caplog):
    for _ in range(2):
        record(tmp_path, load_pretrained(str(backbones / "cnn")), Adapted(head=False, notes=("no head",)))
    assert [entry.getMessage() for entry in caplog.records] == [f"{backbones / 'cnn'}: no head"]


@pytest.mark.slow
def test_another_weights_digest_is_refused_before_the_first_checkpoint(backbones, big, tmp_path):
    tuner(backbones / "cnn", tmp_path / "run").fit(*big)
    for name in ("summary.json", "checkpoints", "model"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    path = tmp_path / "run" / "weights.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))
    with pytest.raises(UserError, match="other weights than when"):
        tuner(backbones / "cnn", tmp_path / "run").fit(*big)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "haed"}, "head"),
        ({"strategy": "head", "l2_sp": 0.1}, "nothing to act on"),
        ({"blocks": 2}, "an option of strategy blocks"),
        ({"lora_rank": 2}, "an option of strategy lora"),
        ({"strategy": "blocks", "blocks": 9}, "blocks: 9 asked for, cnn_tiny has 2"),
        ({"strategy": "lora"}, "attention or MLP"),
        ({"unfreeze_steps": 12}, "after 12 steps more than the head trains, but training has 12 steps"),
    ],
)
def test_wrong_options_are_named(options, message, backbones, big, tmp_path):
    with pytest.raises(UserError, match=message):
        tuner(backbones / "cnn", tmp_path / "run", finetune=options).fit(*big)
    assert not (tmp_path / "run" / "config.yaml").exists()  # the directory can be used with other options


@pytest.mark.parametrize("technique", [FTClassifier, FEClassifier])
def test_weights_that_are_an_empty_text_are_not_the_default_ones(technique):
    with pytest.raises(UserError, match=r"^model\.weights: is empty; give a run directory"):
        _ = technique(model={"weights": ""}).pretrained


@pytest.mark.parametrize("head_comes", mostly_slow([False, True], {False}))
def test_wise_ft_is_between_the_original_and_the_fine_tuned_weights(head_comes, backbones, digits, big, tmp_path):
    data = [part[digits[1] < 5][:300] for part in digits] if head_comes else big
    alone = tuner(backbones / "cnn", tmp_path / "alone").fit(*data)
    wise = tuner(backbones / "cnn", tmp_path / "wise", finetune={"wise_ft": 0.3}).fit(*data)
    original, tuned, found = (leaves(one.fitted.weights) for one in (load(backbones / "cnn"), alone, wise))
    for name, leaf in found.items():
        shared = head_comes or "head" not in name
        expected = 0.7 * original[name] + 0.3 * tuned[name] if shared else tuned[name]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert wise.summary["wise_ft"] == 0.3
    assert wise.summary["fine_tuned_val_accuracy"] == alone.summary["val_accuracy"]
    assert records(tmp_path / "wise", "wise_ft/val/accuracy") == [wise.summary["val_accuracy"]]
    kept = load(tmp_path / "wise")
    np.testing.assert_array_equal(kept.predict_logits(data[0]), wise.predict_logits(data[0]))
    assert not np.allclose(kept.predict_logits(data[0]), alone.predict_logits(data[0]), atol=1e-3)


@pytest.mark.parametrize("strategy", ["lora", "head"])
def test_wise_ft_needs_fine_tuned_weights(strategy):
    with pytest.raises(UserError, match=f"wise_ft.*{strategy}"):
        FTClassifier(finetune={"strategy": strategy, "wise_ft": 0.5})
