"""A head that starts from vectors of the classes' names: zero-shot as CLIP computes it, and trained from there."""

import numpy as np
import pytest
from pydantic import ValidationError

from jaxtrain import FEClassifier, UserError
from jaxtrain.config import HeadConfig
from jaxtrain.heads import Vectors, class_kernel, fit_head

NAMES = ("ant", "bee", "cat", "dog")
generator = np.random.default_rng(0)
TEXT = generator.standard_normal((4, 12)).astype(np.float32)
LABELS = generator.integers(0, 4, 400).astype(np.int32)
IMAGES = (TEXT[LABELS] + 3 * generator.standard_normal((400, 12)) + 1).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "text.npz", embeddings=TEXT[::-1] * 7, class_names=NAMES[::-1])
    return tmp_path / "text.npz"


def fit(file, *, epochs, train=None, **options):
    config = HeadConfig(init=file, epochs=epochs, **options)
    train, val = train or Vectors(IMAGES[:200], LABELS[:200]), Vectors(IMAGES[200:], LABELS[200:])
    return fit_head(config, train, val, num_classes=4, start=class_kernel(file, NAMES, 12))


def test_without_training_logits_are_100_times_the_cosine(file):
    head = fit(file, epochs=0)
    np.testing.assert_allclose(head.logits(IMAGES), 100 * unit(IMAGES) @ unit(TEXT).T, atol=2e-4)
    assert len(head.curve) == 1
    right = np.mean((unit(IMAGES) @ unit(TEXT).T)[200:].argmax(1) == LABELS[200:])
    assert head.curve[0]["val_accuracy"] == pytest.approx(right)


def test_one_step_from_there_is_that_of_numpy(file):
    head = fit(file, epochs=1, learning_rate=(0.5,), weight_decay=(0.3,))  # which pulls to where it is
    x, y = unit(IMAGES[:200]) * np.sqrt(12), np.eye(4)[LABELS[:200]]
    centred = np.c_[x - x.mean(0), np.ones(200)]
    start = 100 / np.sqrt(12) * unit(TEXT).T
    w = np.vstack([start, x.mean(0) @ start])
    logits = centred @ w
    shares = np.exp(logits - logits.max(1, keepdims=True))
    gradient = centred.T @ (shares / shares.sum(1, keepdims=True) - y) / 200
    w -= 1.9 * 0.5 / (1 + (centred[:, :-1] ** 2).sum(1).mean()) * gradient  # Nesterov's first step
    expected = (unit(IMAGES) * np.sqrt(12) - x.mean(0)) @ w[:-1] + w[-1]
    np.testing.assert_allclose(head.logits(IMAGES), expected, atol=1e-3)


def test_weight_decay_pulls_towards_the_start(file):
    start = fit(file, epochs=0).logits(IMAGES)
    moved = [
        np.abs(
            fit(file, epochs=20, weight_decay=(decay,), learning_rate=(0.3,), batch_size=16).logits(IMAGES) - start
        ).max()
        for decay in (1e-6, 1.0)
    ]
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize("epochs", [0, 5])
def test_a_class_without_training_vectors_stays_as_it_starts(file, epochs):
    known = LABELS[:200] != 2
    head = fit(file, epochs=epochs, train=Vectors(IMAGES[:200][known], LABELS[:200][known]))
    np.testing.assert_allclose(head.logits(IMAGES)[:, 2], 100 * (unit(IMAGES) @ unit(TEXT).T)[:, 2], atol=2e-4)


def test_names_in_a_space_that_images_are_projected_into(tmp_path):
    projection = generator.standard_normal((12, 5)).astype(np.float32)
    shared = generator.standard_normal((4, 5))
    np.savez(tmp_path / "clip.npz", embeddings=shared, class_names=NAMES)
    kernel = class_kernel(tmp_path / "clip.npz", NAMES, 12, projection)
    clip = unit(IMAGES @ projection) @ unit(shared).T
    ours = unit(IMAGES) @ kernel * np.sqrt(12)
    assert (ours.argmax(1) == clip.argmax(1)).all()
    assert 0.5 < (ours / clip / 100).mean() < 2
    with pytest.raises(UserError, match="width 5; images have 12"):
        class_kernel(tmp_path / "clip.npz", NAMES, 12)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"embeddings": TEXT, "class_names": ["ant", "bee", "cat", "dgo"]}, "lack dog.*dgo"),
        ({"embeddings": np.ones((5, 12)), "class_names": [*NAMES, "eel"]}, "no class 'eel'"),
        ({"embeddings": np.ones((5, 12)), "class_names": [*NAMES, "ant"]}, "twice"),
        ({"embeddings": TEXT[:, :8], "class_names": NAMES}, "width 8; images have 12"),
        ({"embeddings": TEXT[:3], "class_names": NAMES}, r"float32\[3, 12\]"),
        ({"embeddings": TEXT[0], "class_names": NAMES}, r"float32\[12\]"),
        ({"embeddings": TEXT * [[1], [0], [1], [1]], "class_names": NAMES}, "zeros"),
        ({"embeddings": TEXT * np.nan, "class_names": NAMES}, "NaN"),
        ({"embeddings": TEXT, "class_names": np.array(NAMES, object)}, "pickle"),
        ({"embeddings": TEXT, "class_names": [1, 2, 3, 4]}, "int64"),
        ({"embeddings": TEXT}, "class_names"),
        (None, "there is no .*text.npz"),
    ],
)
def test_a_file_that_will_not_do_is_refused(arrays, said, tmp_path):
    if arrays is not None:
        np.savez(tmp_path / "text.npz", **arrays)
    with pytest.raises(UserError, match=said) as error:
        FEClassifier(head={"init": tmp_path / "text.npz", "epochs": 0}).fit_embeddings(IMAGES, np.array(NAMES)[LABELS])
    assert "\n" not in str(error.value)
    assert "text.npz" in str(error.value)


def test_several_labels_per_image_have_no_such_start(file):
    with pytest.raises(UserError, match=r"head\.init"):
        FEClassifier(head={"init": file}).fit_embeddings(IMAGES, np.eye(4, dtype=int)[LABELS] | [1, 0, 0, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"init": "x.npz", "solver": "lbfgs"},
        {"init": "x.npz", "scaling": ("standard",)},
        {"init": "x.npz", "name": "mlp"},
        {"epochs": 0},
        {"epochs": 0, "name": "mlp"},
    ],
)
def test_options_that_do_not_go_with_it(options):
    with pytest.raises(ValidationError, match=r"init|epochs"):
        HeadConfig(**options)
