"""Evaluation and verdict of constructed models whose right verdict is known; see `zoo.py`."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from zoo import ARC, KINDS, judged_models

pytestmark = pytest.mark.slow

FREQUENT_CLASSES = (
    "The most frequent class of a grid is no object, but its cells count in the recall of this class. In "
    "`arc`, these cells alone suffice for over half of the classes to count as learned. The "
    "four classes that these models keep have 45 % of the objects, more than the bound on object recall."
)
MISSES = {
    (ARC, "the most frequent classes, the rest erased", 4): FREQUENT_CLASSES,
    (ARC, "the most frequent classes, all other objects in the first of them", 4): FREQUENT_CLASSES,
}
"""Models that are judged wrongly, each with the reason."""


def test_verdicts_on_constructed_models_agree_with_a_person() -> None:
    models = list(judged_models())
    of_kind: dict[str, list[bool]] = defaultdict(list)
    for model in models:
        of_kind[model.kind.name].append(model.is_right)
    misses = {
        (model.habitat, model.kind.name, model.strength): model.verdict.reason
        for model in models
        if not model.is_right
    }
    assert len(models) >= 200
    assert len(of_kind) == len(KINDS) >= 40
    assert max(Counter((model.habitat, model.kind.name) for model in models).values()) <= 5
    assert sum(kind.last for kind in KINDS) >= len(KINDS) / 10
    assert misses.keys() == MISSES.keys(), misses
    assert len(misses) <= 0.01 * len(models)
    assert all(sum(right) >= 0.8 * len(right) for right in of_kind.values())
