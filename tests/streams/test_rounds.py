"""Rounds and the outputs of their labels."""

from __future__ import annotations

import re

import pytest

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.streams import Heads, LabelSpace, Round


def rows(names, labels=None):
    labels = tuple(range(len(names))) if labels is None else labels
    return TextData(tuple("abcdefgh"[: len(labels)]), labels=labels, label_names=names)


def space(heads, *rounds):
    found = LabelSpace(heads)
    for name, names in rounds:
        found = found.extended(Round(name, rows(names)))
    return found


TWO = (("one", ("bad", "good")), ("two", ("good", "fair")))


def test_shared_labels_are_one_output_each_in_the_order_they_came():
    found = space(Heads.SHARED, *TWO)
    assert found.names == ("bad", "good", "fair")
    assert found.owners == ("one", "one", "two")
    assert found.rounds == ("one", "two")
    assert found.columns("one") == found.columns("never met") == (0, 1, 2)
    assert found.targets("two", rows(("good", "fair"), (0, 1, 1))) == (1, 2, 2)


def test_labels_are_told_by_name_not_by_number():
    found = space(Heads.SHARED, *TWO)
    assert found.targets("one", rows(("good", "bad"))) == (1, 0)


def test_every_round_has_its_own_outputs():
    found = space(Heads.PER_ROUND, *TWO)
    assert found.names == ("bad", "good", "good", "fair")
    assert found.columns("two") == (2, 3)
    assert found.targets("two", rows(("good", "fair"))) == (2, 3)
    assert found.within("two", rows(("fair", "good"))) == (1, 0)
    assert found.titles == ("one/bad", "one/good", "two/good", "two/fair")


@pytest.mark.parametrize("heads", Heads)
def test_old_outputs_stay_where_they_are(heads):
    before, after = space(heads, TWO[0]), space(heads, *TWO)
    assert after.names[: len(before.names)] == before.names
    assert after.targets("one", rows(("bad", "good"))) == (0, 1)


@pytest.mark.parametrize("heads", Heads)
def test_meeting_a_round_again_changes_nothing(heads):
    found = space(heads, *TWO)
    assert found.extended(Round("one", rows(("bad", "good")))) == found


def test_a_round_of_one_class_brings_what_it_names():
    assert space(Heads.SHARED, ("one", ("bad",))).names == ("bad",)


def test_another_round_under_an_old_name():
    with pytest.raises(DataError, match="names that differ"):
        space(Heads.PER_ROUND, TWO[0], ("one", ("no", "yes")))


def test_a_round_not_met_has_no_outputs_of_its_own():
    with pytest.raises(DataError, match=r"'two' has no outputs yet\. Met so far: 'one'"):
        space(Heads.PER_ROUND, TWO[0]).columns("two")


@pytest.mark.parametrize("heads", Heads)
def test_rows_with_a_label_that_nobody_brought(heads):
    found = space(heads, *TWO)
    assert not found.knows("one", rows(("bad", "awful")))
    assert found.knows("one", rows(("bad", "good")))
    with pytest.raises(DataError, match="no output: 'awful'"):
        found.targets("one", rows(("bad", "awful")))


def test_rows_without_labels():
    found = space(Heads.SHARED, *TWO)
    assert not found.knows("one", TextData(("a",)))
    with pytest.raises(DataError, match="no classes"):
        found.targets("one", TextData(("a",)))


def test_a_round_needs_names_of_labels_even_without_rows():
    assert Round("empty", TextData((), labels=(), label_names=("bad", "good")))
    with pytest.raises(DataError, match="names of labels"):
        Round("regression", TextData(("a",), labels=(0.5,), regression=True))


@pytest.mark.parametrize("label", [2, -1, (0, 1), "good"])
@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_a_label_without_a_name_is_refused_with_its_row(part, label):
    fine = TextData(("a", "b"), labels=(0, 1), label_names=("bad", "good"))
    wrong = TextData(("a", "b"), labels=(0, label), label_names=("bad", "good"))
    said = rf"'odd', {part} rows: row 1 has the label {re.escape(repr(label))}.*2 in label_names"
    with pytest.raises(DataError, match=said):
        Round("odd", **{"train": fine, part: wrong})
    with pytest.raises(DataError, match="'odd': row 1 has the label"):
        space(Heads.SHARED, ("odd", ("bad", "good"))).targets("odd", wrong)
