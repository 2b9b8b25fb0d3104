"""Exported models give the logits of the model, in programs that have no jaxtrain."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxtrain
from jaxtrain.classifiers.export import export_stablehlo, export_to_timm
from jaxtrain.cli.main import run
from jaxtrain.data.base import ArraySource
from jaxtrain.errors import UserError
from jaxtrain.models.weights import load_pretrained
from tests.models.weights import torchvision_stub

WITHOUT_JAXTRAIN = """
import sys
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
assert "jaxtrain" not in sys.modules
"""
FAMILIES = ("cnn_small", "convnext_test", "efficientnet_lite_test", "linear", "mlp_tiny", "resnet18", "vit_test")


def trained(technique, folder, name="", **options):
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    options = {"model": {"name": name}, "tracking": {"enabled": False}, "quiet": True, **options}
    classifier = technique(**options, run_dir=folder / "run")
    return classifier.fit(images, np.array(["a", "b"])[np.arange(24) % 2])


def agrees(classifier, folder):
    """In another process, for two sizes of the batch."""
    program = folder / "out" / "model.stablehlo"
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.save(folder / "images.npy", images)
        command = [sys.executable, "-c", WITHOUT_JAXTRAIN, program, folder / "images.npy", folder / "logits.npy"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
        source = ArraySource(images, np.zeros(count, np.int32), prepared=True)
        np.testing.assert_allclose(np.load(folder / "logits.npy"), classifier.predict_logits(source), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES)
def test_stablehlo_of_every_family(tmp_path, model):
    classifier = trained(jaxtrain.PTClassifier, tmp_path, model, train={"steps": 1, "batch_size": 8})
    assert export_stablehlo(classifier, tmp_path / "out") == tmp_path / "out"
    agrees(classifier, tmp_path)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["classes"] == ["a", "b"]
    assert about["input"] == "uint8[batch, 32, 32, 3]"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mlp", "knn", "sklearn:GaussianNB"])
def test_stablehlo_of_backbone_and_head_together(tmp_path, head):
    (tmp_path / "pt").mkdir()
    trained(jaxtrain.PTClassifier, tmp_path / "pt", "vit_test", train={"steps": 1, "batch_size": 8})
    model = {"weights": str(tmp_path / "pt" / "run")}
    classifier = trained(jaxtrain.FEClassifier, tmp_path, model=model, head={"name": head})
    if head.startswith("sklearn"):
        with pytest.raises(UserError, match=head):
            export_stablehlo(classifier, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pt", "run"]
    else:
        export_stablehlo(classifier, tmp_path / "out")
        agrees(classifier, tmp_path)


def test_the_command_and_what_it_refuses(tmp_path, capsys):
    classifier = trained(jaxtrain.PTClassifier, tmp_path, "mlp_tiny", train={"steps": 1, "batch_size": 8})
    run(["export", str(tmp_path / "run")])
    folder = tmp_path / "run" / "stablehlo"
    assert "stablehlo" in capsys.readouterr().out
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    source = ArraySource(images, np.zeros(3, np.int32), prepared=True)
    np.testing.assert_allclose(program.call(images), classifier.predict_logits(source), atol=1e-4)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for words, reason in (
        ([], "there already"),
        (["--out", str(tmp_path / "gone" / "x")], "gone"),
        (["--to", "timm"], "mlp_tiny"),
        (["--to", "onxx"], "stablehlo"),
    ):
        with pytest.raises(UserError, match=reason):
            run(["export", str(tmp_path / "run"), *words])
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_timms_files(tmp_path):
    trained(jaxtrain.PTClassifier, tmp_path, "resnet18", train={"steps": 1, "batch_size": 8})
    export_to_timm(tmp_path / "run", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (about["architecture"], about["num_classes"], about["label_names"]) == ("resnet18", 2, ["a", "b"])
    ours, theirs = load_pretrained(str(tmp_path / "run")), load_pretrained(str(tmp_path / "out" / "model.safetensors"))
    for name, array in ours.params.items():
        np.testing.assert_array_equal(theirs.params[name], array)
    torch = pytest.importorskip("torch")
    torchvision_stub.install()
    timm = pytest.importorskip("timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    mean, std = (np.asarray(about["pretrained_cfg"][name], np.float32) for name in ("mean", "std"))
    given = torch.from_numpy(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).copy())
    source = ArraySource(pixels, np.zeros(2, np.int32), prepared=True)
    wanted = jaxtrain.load(tmp_path / "run").predict_logits(source)
    with torch.no_grad():
        np.testing.assert_allclose(network(given).numpy(), wanted, atol=1e-3)
