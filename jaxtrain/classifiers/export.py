"""A trained model for programs that have no jaxtrain: as StableHLO for JAX, as ONNX, as timm's files for PyTorch."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from jaxtrain.classifiers.model_card import model_card
from jaxtrain.classifiers.trained import Trained
from jaxtrain.config import chosen
from jaxtrain.data.base import ArraySource, Images
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason, write_text
from jaxtrain.heads.base import JaxHead
from jaxtrain.models.registry import model_spec
from jaxtrain.models.weights import export_timm, load_pretrained
from jaxtrain.models.weights.hub import check_push, push
from jaxtrain.training.inference import host_batches

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4
"""The largest difference of a logit from the model's own."""
_CHECKED = 16
_FOR_ONNX = ("onnx", "onnx_ir", "onnxruntime", "equinox", "dm_pix", "jax2onnx")
_INSTALLS = 'pip install -e ".[onnx]", then pip install --no-deps jax2onnx==0.17.1 (which asks for an older Orbax)'
_log = logging.getLogger(__name__)


def export_stablehlo(classifier: Trained, folder: Path) -> Path:
    """Write `model.stablehlo` and `model.json` to a new folder; `jax.export.deserialize` reads the former.

    The program takes `uint8[batch, size, size, channels]` with any batch and gives logits `float32[batch, classes]`;
    weights and normalisation are inside, and it runs on CPU, CUDA and TPU. Class names, and how pictures are cropped
    and resized before, are in `model.json`. Raises UserError for a head that is not a JAX function, and RunError where
    its logits are not those of the model on some images; nothing is left behind then.
    """
    with _made(folder) as made:
        program = export.export(jax.jit(_logits(classifier)), platforms=PLATFORMS)(_any_batch(classifier))
        (made / "model.stablehlo").write_bytes(program.serialize())
        about = {**_about(classifier), "platforms": list(PLATFORMS)}
        write_text(made / "model.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        again = export.deserialize(bytearray((made / "model.stablehlo").read_bytes()))
        _compare(again.call, classifier)
    return folder


def export_onnx(classifier: Trained, folder: Path) -> Path:
    """Write `model.onnx` and `model.json` to a new folder: the program of `export_stablehlo` as ONNX.

    Its input is `images`, its output `logits`; what `model.json` says is also in the model's metadata. Raises as
    `export_stablehlo`, with the logits of onnxruntime; UserError where jax2onnx is not installed, RunError where it
    cannot convert the network.
    """
    if missing := [name for name in _FOR_ONNX if find_spec(name) is None]:
        raise UserError(f"--to onnx needs {missing[0]}: {_INSTALLS}")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of every shape with a symbol
    import jax2onnx
    import onnx
    import onnxruntime

    logits = _logits(classifier)
    with _made(folder) as made:
        path, about = made / "model.onnx", _about(classifier)
        try:
            model = jax2onnx.to_onnx(
                logits, [_any_batch(classifier)], input_names=["images"], output_names=["logits"], model_name="jaxtrain"
            )
        except Exception as error:  # of many kinds, for what it does not know
            label = classifier.fitted.config.model.label
            raise RunError(f"jax2onnx cannot convert {label}: {reason(error)}") from error
        onnx.helper.set_model_props(model, {name: _as_text(value) for name, value in about.items()})
        onnx.save(model, path)
        write_text(made / "model.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        _compare(lambda images: session.run(None, {"images": images})[0], classifier)
    return folder


def export_to_timm(run: Path, folder: Path, *, address: str = "local-dir:.") -> Path:
    """Write `model.safetensors` and `config.json` to a new folder, as `timm.create_model("local-dir:...")` reads them,
    and a model card, `README.md`.

    `run` is a run directory, or a folder written by `save`; `address`: where the card says the model is. Raises
    UserError for a network that timm does not have, and for feature extraction, whose head is apart.
    """
    weights = load_pretrained(str(run))
    if not weights.class_names:
        raise UserError(f"{run}: timm's files are of networks with their own last layer, as ft and pt train them")
    with _made(folder) as made:
        export_timm(weights, made / "model.safetensors")
        again = load_pretrained(str(made / "model.safetensors"))
        for name, array in {**weights.params, **weights.model_state}.items():
            if not np.array_equal(array, {**again.params, **again.model_state}[name]):
                raise RunError(f"{folder}: {name} is not what it was when it is read again")
        spec = model_spec(chosen(weights.model.name))
        about = {
            "architecture": spec.timm_name,
            "num_classes": len(weights.class_names),
            "label_names": list(weights.class_names),
            "pretrained_cfg": {
                "input_size": [weights.channels, weights.image_size, weights.image_size],
                "mean": list(weights.mean or ()),
                "std": list(weights.std or ()),
                "crop_pct": weights.crop_pct,
                "crop_mode": "center",
                "interpolation": weights.interpolation,
                "num_classes": len(weights.class_names),
            },
        }
        write_text(made / "config.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        names, side = weights.class_names, weights.image_size
        card = model_card(run, model=spec.name, address=address, class_names=names, size=side)
        write_text(made / "README.md", card)
    return folder


def export_to_hub(run: Path, name: str, *, public: bool = False) -> str:
    """Push what `export_to_timm` writes to the Hugging Face hub as ORG/NAME; its address. A new repository is private
    unless `public`.

    The token is that of the environment (HF_TOKEN), or of `hf auth login`. Raises as `export_to_timm`, and UserError
    where there is no token or the hub refuses, RunError where it cannot be reached.
    """
    check_push()
    with tempfile.TemporaryDirectory() as folder:
        return push(export_to_timm(run, Path(folder) / "timm", address=f"hf-hub:{name}"), name, public=public)


def some_images(classifier: Trained) -> Images:
    """Training images of the model's data set as the network takes them; noise where the data set is gone."""
    config = classifier.fitted.config
    try:
        source = load_dataset(config.data).train
        source = source.select(np.arange(min(_CHECKED, len(source))))
        return np.asarray(next(host_batches(config, source, len(source))).image)
    except UserError as error:
        _log.warning("checked on random pixels, as the data set cannot be read: %s", error)
        side, channels = chosen(config.data.image_size), chosen(config.data.channels)
        pixels = np.random.default_rng(0).integers(0, 256, (_CHECKED, side, side, channels))
        return pixels.astype(config.data.pixel_type)


def _any_batch(classifier: Trained) -> jax.ShapeDtypeStruct:
    """Images for the network, of which there may be any number."""
    data = classifier.fitted.config.data
    side = chosen(data.image_size)
    shape = (*export.symbolic_shape("batch"), side, side, chosen(data.channels))
    return jax.ShapeDtypeStruct(shape, np.dtype(data.pixel_type))


def _about(classifier: Trained) -> dict[str, Any]:
    """What goes in and comes out, and how pictures are prepared before."""
    data = classifier.fitted.config.data
    size, channels = chosen(data.image_size), chosen(data.channels)
    return {
        "classes": list(classifier.class_names),
        "input": f"{data.pixel_type}[batch, {size}, {size}, {channels}]",
        "output": f"float32[batch, {len(classifier.class_names)}], logits",
        "task": classifier.fitted.task.name,
        **({} if classifier.thresholds is None else {"thresholds": list(classifier.thresholds)}),
        "shorter side": int(size / chosen(data.crop_pct)),
        "central crop": size,
        "interpolation": chosen(data.interpolation),
        "jax": jax.__version__,
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _logits(classifier: Trained) -> Callable[[Any], Any]:
    forward = classifier.forward_pass()
    if forward.head is None:
        return lambda images: forward.network(forward.weights, images)
    head = classifier.fitted.predictor.head  # type: ignore[attr-defined]
    if not isinstance(head, JaxHead):
        raise UserError(f"the head {head.name} is not a JAX function; heads such as linear and mlp are")
    arrays = jax.device_put(head.arrays)
    return lambda images: head.apply(arrays, forward.network(forward.weights, images))


def _compare(program: Callable[[Images], Any], classifier: Trained) -> None:
    """RunError where the exported program gives other logits than the model."""
    images = some_images(classifier)
    source = ArraySource(images, np.zeros(len(images), np.int32), prepared=True)
    difference = float(np.abs(np.asarray(program(images)) - classifier.predict_logits(source)).max())
    if not difference <= TOLERANCE:
        raise RunError(f"the exported program is wrong: its logits differ by up to {difference:.2g} from the model's")


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Where a folder is made that has its name only once it is complete."""
    if folder.exists():
        raise UserError(f"{folder} is there already: remove it, or choose another name")
    if not folder.parent.is_dir():
        raise UserError(f"{folder}: there is no folder {folder.parent}")
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
        made.chmod(0o755)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
