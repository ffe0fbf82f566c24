import builtins
from dataclasses import replace

import numpy as np
import pytest

from mitoseg.classical.trees import TreeEnsemble
from mitoseg.errors import UserError

ensemble = pytest.importorskip("sklearn.ensemble")


def samples(seed=0, count=600):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5)).astype(np.float32).round(1)  # ties with thresholds are likely
    return x, x[:, 0] * x[:, 1] + x[:, 2] + rng.normal(0, 0.3, count) > 0.4


def forest():
    model = ensemble.RandomForestClassifier(7, min_samples_leaf=3, random_state=0).fit(*samples())
    return TreeEnsemble.from_forest(model.estimators_), model.predict_proba(samples(1)[0])[:, 1]


def boosting():
    model = ensemble.HistGradientBoostingClassifier(max_iter=9, early_stopping=False).fit(*samples())
    return TreeEnsemble.from_boosting(model), model.decision_function(samples(1)[0])


@pytest.mark.parametrize("grown", [forest, boosting])
def test_the_answers_are_those_of_scikit_learn(grown, monkeypatch):
    trees, expected = grown()
    features_fn = np.ascontiguousarray(samples(1)[0].T)
    np.testing.assert_allclose(trees.check(5)(features_fn), expected, rtol=1e-12)
    real = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    np.testing.assert_allclose(trees(features_fn), expected, rtol=1e-12)


def test_a_tree_by_hand():
    names = ("feature", "threshold", "left", "right", "value")
    columns = np.array([[1, 0, 0], [0.5, 0, 0], [1, 0, 0], [2, 0, 0], [9, 1, 2]])
    trees = TreeEnsemble.join([dict(zip(names, columns, strict=True))] * 2)
    assert trees(np.array([[0, 0, 0], [0.4, 0.5, 0.6]], np.float32)).tolist() == [2, 2, 4]


@pytest.mark.parametrize(
    ("name", "value"), [("left", 10**6), ("right", 0), ("right", -4), ("feature", 5), ("feature", -1)]
)
def test_trees_that_lead_nowhere_are_refused(name, value):
    trees, _ = forest()
    broken = getattr(trees, name).copy()
    broken[0] = value
    with pytest.raises(UserError, match="damaged"):
        replace(trees, **{name: broken}).check(5)
    with pytest.raises(UserError, match="damaged"):
        replace(trees, value=trees.value[:-1]).check(5)
