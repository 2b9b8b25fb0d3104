import subprocess
import sys

import pytest

from jaxtrain.config import DataConfig
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import UserError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown data set 'digit': did you mean 'digits'?"),
        ("fodler:/tmp", "unknown data set 'fodler:/tmp': did you mean 'folder:'?"),
        ("cifar10", "unknown data set 'cifar10': did you mean 'tfds:cifar10'?"),
        ("things.npz", "unknown data set 'things.npz': did you mean 'npz:things.npz'?"),
        ("photos.csv", "unknown data set 'photos.csv': did you mean 'csv:photos.csv'?"),
        ("tfds:", "'tfds:' names nothing: write tfds:NAME"),
    ],
)
def test_unknown_names_get_the_nearest_valid_one(name, message):
    with pytest.raises(UserError) as error:
        load_dataset(DataConfig(name=name))
    assert str(error.value) == f"data.name: {message}"


def test_what_is_like_no_name_gets_all_forms():
    with pytest.raises(UserError, match=r"'qqq': valid: .*csv:FILE, digits, .*folder:PATH, .*tfds:NAME"):
        load_dataset(DataConfig(name="qqq"))


def test_a_range_of_values_without_effect_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.value_range: .*not of digits"):
        load_dataset(DataConfig(value_range=(0, 1)))


def test_a_path_alone_is_taken_for_a_folder(tmp_path):
    with pytest.raises(UserError, match=f"did you mean 'folder:{tmp_path}'"):
        load_dataset(DataConfig(name=str(tmp_path)))


@pytest.mark.parametrize("scheme", ["folder", "idx", "npz", "csv", "parquet"])
def test_missing_paths_name_the_nearest_neighbour(tmp_path, scheme):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError) as error:
        load_dataset(DataConfig(name=f"{scheme}:{tmp_path}/flower/x"))
    assert str(error.value) == (
        f"{scheme}:{tmp_path}/flower/x does not exist: there is no 'flower' in {tmp_path}: did you mean 'flowers'?"
    )


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, jaxtrain.data.sources, jaxtrain.data.digest; "
        "print(sorted({'jax', 'sklearn', 'tensorflow_datasets', 'PIL', 'tensorflow'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
