"""Exported models give the logits of the model, in programs that have no jaxtrain."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
import yaml

import jaxtrain
from jaxtrain.classifiers.export import export_stablehlo, export_to_timm
from jaxtrain.cli.main import run
from jaxtrain.data.base import ArraySource
from jaxtrain.errors import RunError, UserError
from jaxtrain.models.weights import load_pretrained
from jaxtrain.models.weights.hub import push
from tests.models.weights import torchvision_stub

WITHOUT_JAXTRAIN = """
import sys
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
for name in sys.argv[2:]:
    np.save(name, program.call(np.load(name)))
assert "jaxtrain" not in sys.modules
"""
FAMILIES = ("cnn_small", "convnext_test", "efficientnet_lite_test", "linear", "mlp_tiny", "resnet_tiny", "vit_test")


def trained(technique, folder, name="", **options):
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    options = {"model": {"name": name}, "tracking": {"enabled": False}, "quiet": True, **options}
    classifier = technique(**options, run_dir=folder / "run")
    return classifier.fit(images, np.array(["a", "b"])[np.arange(24) % 2])


def agrees(classifier, folder, *, elsewhere=False):
    """For two sizes of the batch; elsewhere: in a process that has no jaxtrain."""
    program = folder / "out" / "model.stablehlo"
    batches = [np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8) for count in (1, 5)]
    files = [folder / f"{len(images)}.npy" for images in batches]
    if elsewhere:
        for file, images in zip(files, batches, strict=True):
            np.save(file, images)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, "-c", WITHOUT_JAXTRAIN, program, *files]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
        found = [np.load(file) for file in files]
    else:
        exported = jax.export.deserialize(bytearray(program.read_bytes()))
        found = [exported.call(images) for images in batches]
    for images, logits in zip(batches, found, strict=True):
        source = ArraySource(images, np.zeros(len(images), np.int32), prepared=True)
        np.testing.assert_allclose(logits, classifier.predict_logits(source), atol=1e-4)


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
        agrees(classifier, tmp_path, elsewhere=head == "linear")


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
        (["--to", "onxx"], "onnx"),
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a network that timm has too, with figures of a test set."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    jaxtrain.PTClassifier(
        run_dir=(folder := tmp_path_factory.mktemp("finished") / "run"),
        model={"name": "vit_test"},
        train={"steps": 1, "batch_size": 8},
        tracking={"enabled": False},
        quiet=True,
    ).fit(images, np.array(["a<b>", "b"])[np.arange(24) % 2], test=(images, np.array(["a<b>", "b"])[np.arange(24) % 2]))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub, in the place of the hub."""
    asked = {}

    def create_repo(self, repo_id, **options):
        asked.update(repo=repo_id, **options)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        asked.update(files=files, to=repo_id, message=commit_message)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    return asked


@pytest.mark.slow
def test_a_run_is_pushed_with_its_card(finished, hub, capsys):
    run(["export", str(finished), "--to", "hub", "--hub-name", "me/digits"])
    assert capsys.readouterr().out.split() == ["hub", "https://hub.example/me/digits"]
    assert (hub["repo"], hub["to"], hub["private"]) == ("me/digits", "me/digits", True)
    assert set(hub["files"]) == {"config.json", "model.safetensors", "README.md"}
    assert not any(b"hf_xxx" in content for content in hub["files"].values())
    _, head, text = hub["files"]["README.md"].decode().split("---\n", 2)
    measured = json.loads((finished / "benchmark" / "metrics.json").read_text())
    (result,) = yaml.safe_load(head)["model-index"][0]["results"]
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert figures["accuracy"] == measured["test/accuracy"]
    assert "24 images" in text
    assert measured["test_digest"][:12] in text
    assert 'timm.create_model("hf-hub:me/digits"' in text
    assert "<b>" not in text.replace("\\<", "")
    run(["export", str(finished), "--to", "hub", "--hub-name", "me/digits", "--hub-public"])
    assert hub["private"] is False
    assert not list(finished.glob("hub*"))


def test_what_the_hub_does_not_take_is_one_line(tmp_path, hub, monkeypatch):
    words = ["export", str(tmp_path), "--to", "hub"]
    for more, reason in (
        ([], "--hub-name"),
        (["--hub-name", "nobody"], "hub_name"),
        (["--hub-name", "me/x", "--out", "y"], "--out"),
        (["--hub-name", "me/x", "--to", "timm"], "--hub-name"),
        (["--hub-name", "me/x"], "no weights"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            run([*words, *more])
        assert "\n" not in str(error.value)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        run([*words, "--hub-name", "me/x"])

    def refuse(self, repo_id, **options):
        response = SimpleNamespace(status_code=403, headers={}, request=None)
        raise huggingface_hub.errors.HfHubHTTPError("no hf_" + "x" * 30, response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"me/x was refused \(403\)") as error:
        push(tmp_path, "me/x", public=False)
    assert "hf_x" not in str(error.value)

    def break_off(self, repo_id, **options):
        raise ConnectionError("gone")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", break_off)
    with pytest.raises(RunError, match="gone"):
        push(tmp_path, "me/x", public=False)
