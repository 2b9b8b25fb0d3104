import optuna
import pytest
from sklearn.utils import all_estimators

from jaxtrain.heads.search_spaces import SPACES


@pytest.mark.parametrize("name", SPACES)
def test_options_exist_and_are_drawn(name):
    if name == "XGBClassifier":
        found = pytest.importorskip("xgboost").XGBClassifier
    else:
        found = dict(all_estimators(type_filter="classifier"))[name]
    space = SPACES[name]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    known = found().get_params()
    for _ in range(3):
        options = study.ask(dict(space.tuned)).params
        assert set(options) | set(space.fixed) <= set(known)
        for option, one in space.tuned.items():
            if hasattr(one, "low"):
                assert one.low <= options[option] <= one.high
