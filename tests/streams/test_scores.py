"""Scores of a stream, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.streams import Heads, LabelSpace, Round, RoundScore, StreamScores, score


@dataclass
class Fixed:
    """A run that gives the same probabilities to every row of a round."""

    rows: dict[str, list[float]]

    def probabilities(self, round_name, data):
        return torch.tensor([self.rows[round_name]] * len(data), dtype=torch.float64)


def rows(labels, names=("bad", "good")):
    return TextData(tuple(map(str, labels)), labels=tuple(labels), label_names=names)


def round_of(name, labels, names=("bad", "good")):
    return Round(name, rows(labels, names), rows(labels, names))


def space(heads, *rounds):
    found = LabelSpace(heads)
    for round_ in rounds:
        found = found.extended(round_)
    return found


ONE = round_of("one", [0, 0, 0, 1])
OTHER = round_of("other", [1, 1], ("good", "fair"))


def made(trained, tested, accuracy, outputs=2, nll=0.5, ece=0.1):
    return RoundScore(trained, tested, 10, outputs, accuracy, nll, ece)


STREAM = StreamScores(
    (
        made("a", "a", 0.9),
        made("a", "b", 0.6),
        made("b", "a", 0.7),
        made("b", "b", 0.8, nll=0.3, ece=0.2),
        made("b", "c", 0.4, outputs=4),
        made("c", "a", 0.8, nll=0.1),
        made("c", "b", 0.5, nll=0.2),
        made("c", "c", 0.95, nll=0.6, ece=0.4),
    )
)


def test_figures_of_one_round():
    (found,) = score(Fixed({"one": [0.8, 0.2]}), space(Heads.SHARED, ONE), "one", [ONE])
    assert (found.trained, found.tested, found.n, found.outputs) == ("one", "one", 4, 2)
    assert found.accuracy == 0.75
    wanted = -(3 * torch.tensor(0.8).log() + torch.tensor(0.2).log()) / 4
    assert found.nll == pytest.approx(float(wanted))
    assert found.ece == pytest.approx(0.05)


def test_labels_are_found_by_name_among_the_outputs():
    run = Fixed({"one": [0.6, 0.3, 0.1], "other": [0.1, 0.2, 0.7]})
    both = score(run, space(Heads.SHARED, ONE, OTHER), "other", [ONE, OTHER])
    assert [row.accuracy for row in both] == [0.75, 1.0]
    assert [row.outputs for row in both] == [3, 3]


def test_with_a_head_a_round_labels_count_within_it():
    run = Fixed({"one": [0.6, 0.4], "other": [0.2, 0.8]})
    both = score(run, space(Heads.PER_ROUND, ONE, OTHER), "other", [ONE, OTHER])
    assert [row.accuracy for row in both] == [0.75, 1.0]


def test_rounds_whose_labels_are_not_known_yet_are_left_out():
    again = round_of("again", [1, 0])
    run = Fixed({"one": [0.6, 0.4], "again": [0.6, 0.4]})
    rounds = [ONE, again, OTHER, Round("untested", ONE.train)]
    found = score(run, space(Heads.SHARED, ONE), "one", rounds)
    assert [row.tested for row in found] == ["one", "again"]
    found = score(run, space(Heads.PER_ROUND, ONE), "one", rounds)
    assert [row.tested for row in found] == ["one"]


def test_a_single_class_is_always_right():
    only = round_of("only", [0, 0], ("bad",))
    (found,) = score(Fixed({"only": [1.0]}), space(Heads.SHARED, only), "only", [only])
    assert (found.accuracy, found.nll, found.ece) == (1.0, 0.0, 0.0)


def test_averages_are_over_the_rounds_learnt_so_far():
    assert STREAM.rounds == ("a", "b", "c")
    assert STREAM.average_accuracy("a") == pytest.approx(0.9)
    assert STREAM.average_accuracy("b") == pytest.approx(0.75)
    assert STREAM.average_accuracy("c") == pytest.approx(0.75)
    assert STREAM.average_nll("c") == pytest.approx(0.3)
    assert STREAM.average_ece("c") == pytest.approx(0.2)


def test_backward_transfer_is_what_was_forgotten():
    assert STREAM.backward_transfer("a") == 0.0
    assert STREAM.backward_transfer("b") == pytest.approx(-0.2)
    assert STREAM.backward_transfer("c") == pytest.approx((-0.1 - 0.3) / 2)


def test_forward_transfer_is_what_was_known_beforehand():
    assert STREAM.forward_transfer("a") is None
    assert STREAM.forward_transfer("b") == pytest.approx(0.1)
    assert STREAM.forward_transfer("c") == pytest.approx((0.1 + 0.15) / 2)


def test_what_was_not_scored_is_said():
    with pytest.raises(DataError, match="'c' was not scored after 'a'"):
        STREAM.at("a", "c")
    with pytest.raises(DataError, match="Rounds learnt: 'a', 'b', 'c'"):
        STREAM.average_accuracy("d")
