"""Several labels per image: every technique and head under each way to run a step, on 2 virtual CPU devices.

Prints results as JSON, by technique (and head), then way. Run by test_multilabel_devices.py.
"""

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the test imports this file too, and has one device
    # On a busy machine the threads of devices can take longer to meet than the 40 seconds after which XLA gives up.
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=2 --xla_cpu_collective_call_terminate_timeout_seconds=240"
    )

import numpy as np
from sklearn.datasets import load_digits

from jaxtrain import FEClassifier, FTClassifier, PTClassifier

WAYS = {"one": ("jit", 1), "jit": ("jit", 2), "pmap": ("pmap", 2), "fsdp": ("fsdp", 2)}
FT = {"ft full": {}, "ft norm_bias": {"strategy": "norm_bias"}, "ft linear_probe": {"linear_probe": True}}
FT |= {
    "ft head": {"strategy": "head"},
    "ft blocks": {"strategy": "blocks"},
    "ft lora": {"strategy": "lora", "lora_rank": 2},
}
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"weight_decay": (1e-2, 1.0), "scaling": ("none", "standard")},
    "mlp": {"epochs": 2, "learning_rate": (3e-3,), "weight_decay": (1e-4,), "scaling": ("standard",), "hidden": (8,)},
    "cosine": {"scaling": ("none",)},
    "ncm": {"scaling": ("none",)},
    "knn": {"k": (5,), "scaling": ("none",)},
    "sklearn:gaussian_nb": {"trials": 1},
    "xgboost": {"trials": 1},
}
COMMON: dict[str, Any] = {"quiet": True, "tracking": {"enabled": False}, "augment": {"policy": "none"}}
STEPS = {"train": {"steps": 5, "batch_size": 16, "log_every": 1}, "optimizer": {"learning_rate": 0.01}, **COMMON}


def data() -> tuple[Any, Any]:
    """Digits that are even, large or round; some of it unknown."""
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    labels = np.stack([digits.target % 2 == 0, digits.target > 5, np.isin(digits.target, (0, 6, 8, 9))], axis=1)
    known = labels.astype(np.int8)
    known[:12, 1] = -1
    return (images[:120], known[:120]), (images[120:160], known[120:160])


def found(classifier: Any, train: Any, test: Any) -> dict[str, Any]:
    classifier.fit(*train)
    records = [json.loads(line) for line in (classifier.run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [record["train/loss"] for record in records if "train/loss" in record],
        "logits": classifier.predict_logits(test[0]).tolist(),
        "mAP": classifier.evaluate(*test)["mAP"],
        "thresholds": classifier.thresholds,
    }


def main() -> None:
    train, test = data()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way, (strategy, devices) in WAYS.items():
            parallel = {"parallel": {"strategy": strategy, "devices": devices}}

            def keep(kind: str, make: Any, way: str = way, parallel: Any = parallel, **options: Any) -> None:
                run_dir = folder / f"{kind}-{way}".replace(":", "-")
                results.setdefault(kind, {})[way] = found(make(run_dir=run_dir, **options, **parallel), train, test)

            keep("pt", PTClassifier, model={"name": "mlp_tiny"}, **STEPS)
            weights = {"model": {"weights": str(folder / "pt-one")}}
            if way == "one":
                vit = {"run_dir": folder / "vit", "model": {"name": "vit_test"}, "data": {"image_size": 16}}
                PTClassifier(**vit, **STEPS).fit(*train)
            for kind, finetune in FT.items():
                start = {"model": {"weights": str(folder / "vit")}} if kind == "ft lora" else weights
                keep(kind, FTClassifier, finetune=finetune, **start, **STEPS)
            store = {"features": {"store": folder / f"store-{way}"}}
            for head, options in HEADS.items():
                if head != "xgboost" or importlib.util.find_spec("xgboost"):
                    keep(f"fe {head}", FEClassifier, head={"name": head, **options}, **weights, **store, **COMMON)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
