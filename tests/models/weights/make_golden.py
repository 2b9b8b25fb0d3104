"""Computes golden/*.json and efficientnet_lite0.json: `python tests/models/weights/make_golden.py [CASE ...]`.

Written with torch 2.13.0, timm 1.0.31 and transformers 5.24.0.
"""

import json
import re
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.models.weights import test_package, torchvision_stub
from tests.models.weights.cases import CASES, GOLDEN, draw, images, samples


def google_shapes(width=32, depth=2, heads=2, patch=8, places=17, hidden=128, classes=7):
    """Names and shapes of a ViT in Google's npz files."""
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, places, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, classes),
        "head/bias": (classes,),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (width,), f"{block}/{norm}/bias": (width,)}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (width, heads, width // heads)
            shapes[f"{attention}/{part}/bias"] = (heads, width // heads)
        shapes |= {f"{attention}/out/kernel": (heads, width // heads, width), f"{attention}/out/bias": (width,)}
        for dense, (rows, columns) in (("Dense_0", (width, hidden)), ("Dense_1", (hidden, width))):
            mlp = f"{block}/MlpBlock_3/{dense}"
            shapes |= {f"{mlp}/kernel": (rows, columns), f"{mlp}/bias": (columns,)}
    return shapes


def saved_shapes(model):
    """Names and shapes under which a model's weights are published."""
    if not hasattr(model, "save_pretrained"):
        return {name: tuple(array.shape) for name, array in model.state_dict().items()}
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as folder:  # transformers has other names in memory than in files
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def loaded(case, shapes):
    """The reference network with the drawn weights, loaded by its own code from a file of its own kind."""
    import torch

    model = case.reference().eval()
    arrays = {name: draw(name, shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        if case.file == "npz":
            np.savez(f"{folder}/w.npz", **arrays)
            model.load_pretrained(f"{folder}/w.npz")
        elif hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
            from safetensors.numpy import save_file

            save_file(arrays, f"{folder}/model.safetensors", {"format": "pt"})
            model = type(model).from_pretrained(folder).eval()
        else:
            model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


BLOCKS = re.compile(r"blocks\.\d+|blocks\.\d+\.\d+|layer\d\.\d+|s\d\.b\d+|(stages|layers)\.\d+\.blocks\.\d+")
"""Modules of timm's networks that are blocks, where they are no sequence of such."""


def outputs(size, model, taps=None):
    """`float32[2, classes]`, or the embedding where the reference has no head, of `images(size)`.

    taps: a list that gets the output of each block of timm's networks, channels last.
    """
    import torch

    def tap(module, given, output):
        first = output.ndim == 4 and type(model).__name__ != "SwinTransformer"
        taps.append((output.permute(0, 2, 3, 1) if first else output).numpy())

    if taps is not None:
        for name, module in model.named_modules():
            if BLOCKS.fullmatch(name) and not isinstance(module, torch.nn.Sequential):
                module.register_forward_hook(tap)
    with torch.no_grad():
        result = model(torch.from_numpy(images(size)).permute(0, 3, 1, 2))
    if not isinstance(result, torch.Tensor):
        result = next(result[name] for name in ("logits", "image_embeds", "pooler_output") if name in result)
    return result.numpy()


def reference(case):
    """Names and shapes of the arrays, outputs, and those of the blocks."""
    torchvision_stub.install()
    shapes = google_shapes() if case.file == "npz" else saved_shapes(case.reference())
    taps = []
    return shapes, outputs(case.size, loaded(case, shapes), taps), taps


def rounded(rows):
    return [[float(f"{value:.8g}") for value in row] for row in rows]


def main():
    GOLDEN.mkdir(exist_ok=True)
    for name, case in CASES.items():
        if len(sys.argv) > 1 and not any(fnmatch(name, pattern) for pattern in sys.argv[1:]):
            continue
        shapes, values, taps = reference(case)
        stored = {"shapes": shapes, "outputs": rounded(values), "blocks": rounded(map(samples, taps))}
        (GOLDEN / f"{name}.json").write_text(json.dumps(stored, separators=(",", ":")) + "\n")
        print(f"{name}: {len(shapes)} arrays, outputs of size {np.abs(values).mean():.2f}")
    if len(sys.argv) == 1:
        test_package.keep()


if __name__ == "__main__":
    main()
