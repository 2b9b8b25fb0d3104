import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.cli import main
from jaxtrain.data.base import ArraySource
from jaxtrain.data.digest import images_fingerprint
from jaxtrain.embeddings.key import EmbeddingKey
from jaxtrain.embeddings.store import EmbeddingStore
from jaxtrain.errors import RunError, UserError


def run(words):
    main.run(["embed", *words])


ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Two splits in the default place."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        source = ArraySource(np.full((4, 2, 2, 1), seed, np.uint8), np.zeros(4, np.int32))
        key = EmbeddingKey(
            images=images_fingerprint(source), weights="0" * 64, model="vit_tiny", model_options={}, image_size=224,
            channels=1, mean=(0.5,), std=(0.5,), crop_pct=1.0, interpolation="bicubic", max_pixels=10, pool="cls",
            blocks=1, dtype="float32", view=0, augmentation=None,
        )  # fmt: skip
        EmbeddingStore(tmp_path / "runs" / "embeddings", shard_images=2).get(key, source, lambda part: [ROWS])
    return tmp_path / "runs" / "embeddings"


def digests(store):
    return sorted(path.name for path in store.glob("??/*"))


def as_json(capsys, *arguments):
    run([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_list(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [word.strip() for word in lines[0].split()] == [
        "key", "model", "pixels", "images", "dim", "size", "used", "state",
    ]  # fmt: skip
    assert {line.split()[0] for line in lines[2:4]} == {digest[:12] for digest in digests(store)}
    assert all(line.split()[1:5] == ["vit_tiny", "224", "4", "3"] and "complete" in line for line in lines[2:4])
    assert lines[4].startswith("2 splits, ")
    found = as_json(capsys, "list")
    assert sorted(entry["digest"] for entry in found) == digests(store)
    assert found[0]["key"]["model"] == "vit_tiny"
    run(["list", "--store", "elsewhere"])
    assert capsys.readouterr().out == "no embeddings in elsewhere\n"


def test_verify(store, capsys):
    first, second = digests(store)
    run(["verify"])
    assert sorted(capsys.readouterr().out.splitlines()) == [f"{first[:12]}  sound", f"{second[:12]}  sound"]
    shard = store / first[:2] / first / "00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=f"1 of 2 damaged: {first[:12]}; .*prune KEY"):
        run(["verify"])
    assert f"{first[:12]}  00001.npy changed" in capsys.readouterr().out
    run(["verify", second[:6]])
    assert capsys.readouterr().out == f"{second[:12]}  sound\n"
    shard.unlink()
    assert as_json(capsys, "verify", first[:6])[first]["complete"] is False
    run(["verify", first])
    assert capsys.readouterr().out == f"{first[:12]}  sound so far, 1 of 2 shards\n"


def test_export(store, capsys, tmp_path):
    digest = digests(store)[0]
    np.save("labels.npy", np.arange(4))
    run(["export", digest[:8], "--out", "x.npz", "--labels", "labels.npy"])
    assert capsys.readouterr().out == "x.npz: 4 vectors of 3 numbers\n"
    with np.load("x.npz", allow_pickle=False) as file:
        assert np.array_equal(file["embeddings"], ROWS)
        assert file["labels"].tolist() == [0, 1, 2, 3]
    assert as_json(capsys, "export", digest, "--out", "x.parquet") == {"file": "x.parquet", "images": 4, "dim": 3}
    np.save("bad.npy", np.array([{}]), allow_pickle=True)
    Path("no.npy").write_text("a")
    for labels in ("bad.npy", "no.npy", "missing.npy"):
        with pytest.raises(UserError, match=labels):
            run(["export", digest, "--out", "y.npz", "--labels", labels])


def test_prune_asks_for_yes(store, capsys):
    first, second = digests(store)
    run(["prune", first[:8]])
    out = capsys.readouterr().out
    assert f"{first[:12]} " in out
    assert second[:12] not in out
    assert "1 would go (" in out
    assert "add --yes" in out
    assert len(digests(store)) == 2
    run(["prune", first[:8], "--unused-days", "1", "--yes"])
    assert capsys.readouterr().out == "0 deleted (0 B)\n"
    run(["prune", "--unused-days", "1"])
    assert capsys.readouterr().out == "nothing would go\n"
    assert as_json(capsys, "prune", "--max-gb", "0") == {
        "chosen": as_json(capsys, "prune", "--unused-days", "0")["chosen"],
        "removed": [],
    }
    run(["prune", first[:8], "--yes"])
    assert "1 deleted (" in capsys.readouterr().out
    assert digests(store) == [second]


def test_wrong_commands_are_one_line(store):
    for arguments, message in [
        (["prun"], "prun: no such command; did you mean 'prune'?"),
        (["zzz"], "valid: compute, export, list, prune, verify"),
        ([], "valid: compute, export, list, prune, verify"),
        (["prune"], "nothing to prune by: give --unused-days, --max-gb or keys"),
        (["prune", "--unused-days", "-1"], "unused_days: must be greater than or equal to 0"),
        (["prune", "--max-gb", "nan"], "max_gb: must be a finite number"),
        (["prune", "--unused-dais", "3"], "did you mean '--unused-days'?"),
        (["prune", "--unused-days", "x"], "unused_days: must be a valid number, not 'x'"),
        (["verify", "zz"], "key zz: no embeddings have it; valid: "),
        (["export"], "KEY is missing"),
        (["export", "1a"], "--out is missing"),
    ]:
        with pytest.raises(UserError) as caught:
            run(arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_script_ends_as_the_others_do(store):
    def script(*arguments):
        command = [sys.executable, str(ROOT / "scripts" / "embed.py"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=store.parent.parent, check=False, env=ENVIRONMENT
        )

    assert script("verify").returncode == 0
    wrong = script("verify", "zz")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    first = digests(store)[0]
    (store / first[:2] / first / "00000.json").write_text("")
    damaged = script("verify")
    assert (damaged.returncode, len(damaged.stderr.splitlines())) == (1, 1)
