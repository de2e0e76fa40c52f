"""Labels in columns: what goes in comes out."""

import math

import pytest

from semievol.agreement import Label
from semievol.labeling import Labels


def test_labels_come_back_as_they_were() -> None:
    given = [
        Label("consistent", "a", "It is a.", 1.0, 0.25, 0.0, 0.875),
        Label("justified", "b", "b", 0.5, 1.5, math.log(2)),
        Label("too_long"),
    ]
    labels = Labels()
    for number, label in enumerate(given):
        labels.append(f"row-{number}", label)
    assert labels.ids == ["row-0", "row-1", "row-2"]
    assert len(labels) == 3
    assert repr(list(labels)) == repr(given)  # NaN is not equal to itself
    assert repr(labels[1:]) == repr(given[1:])
    assert repr(labels[-1]) == repr(given[-1])
    with pytest.raises(IndexError):
        labels[3]
