"""`jaxtrain models`."""

from pathlib import Path

import pytest

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.errors import UserError
from jaxtrain.models.registry import list_models, top1, undominated


def listed(capsys, *words):
    run(["models", *words])
    return capsys.readouterr().out


def test_every_model_is_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert [line.split()[0] for line in listed(capsys).splitlines()[2:] if line.strip()] == list_models()


def test_a_pattern_and_a_single_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    some = listed(capsys, "resnet1*")
    assert "resnet152" in some
    assert "resnet50" not in some
    one = listed(capsys, "vit_base_patch16_224")
    for shown in (
        "params 86.6 M",
        "35.1 G",
        "768",
        "224",
        "84.534@224",
        "hf:timm/vit_base_patch16_224.mae",
        "cc-by-nc-4.0",
        "apache-2.0",
    ):
        assert shown in one


def test_the_readme_of_models_has_the_table(capsys):
    readme = (Path(jaxtrain.__file__).parent / "models" / "README.md").read_text()
    table = listed(capsys, "--format", "markdown")
    assert len(table.splitlines()) == 2 + len(list_models())
    assert f"\n\n{table}\n" in readme, "jaxtrain models --format markdown has another table"


def test_a_name_that_is_none(capsys):
    with pytest.raises(UserError, match=r"no model matches 'resnet81'; did you mean 'resnet18'"):
        listed(capsys, "resnet81")


def test_models_to_start_from(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = undominated(list_models())
    text = listed(capsys, "--for", "fe")
    names = [line.split()[0] for line in text.splitlines()[2:] if line.strip()]
    assert names == list(found.values())
    assert all(source.removeprefix(f"hf:timm/{name}.") in text for source, name in found.items())
    percents = [float(top1(name)[source].split("@")[0]) for source, name in found.items()]
    assert percents == sorted(percents)
    everything = [value for name in list_models() for value in top1(name).values()]
    assert percents[-1] == max(float(value.split("@")[0]) for value in everything)
    with pytest.raises(UserError, match="fe, ft"):
        listed(capsys, "--for", "pt")
