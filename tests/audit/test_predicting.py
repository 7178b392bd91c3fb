"""Predictions of a model beside the rows they are about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, WeightedRandomSampler

from posthoc_bhpeft import Bernoulli, Gaussian
from posthoc_bhpeft.audit.predicting import check_order, names_for, predictions_of, rows_of
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.rivals import Point
from tests.audit.bags import NAMES, Bag, bag_loader, bag_rows, pad, without_labels

ROWS = bag_rows(40)


def with_config(**settings: Any) -> Bag:
    """A model that says about itself what transformers models do."""
    model = Bag()
    model.config = SimpleNamespace(**settings)  # type: ignore[assignment]
    return model


def test_rows_come_from_the_loader_unless_others_are_given() -> None:
    loader = bag_loader(ROWS)
    assert predictions_of(Bag(), loader, progress=False).texts == ROWS.texts
    mine = replace(ROWS, texts=tuple(f"text {n}" for n in range(40)))
    assert predictions_of(Bag(), loader, mine, progress=False).texts == mine.texts


def test_order_of_the_batches_changes_nothing() -> None:
    one, two = (
        predictions_of(Bag(), bag_loader(ROWS, by_length=b, batch_size=s), progress=False)
        for b, s in ((True, 7), (False, 16))
    )
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-12)
    assert one.labels is not None
    assert one.labels.tolist() == two.labels.tolist() == list(ROWS.labels or ())  # type: ignore[union-attr]


def test_batches_without_texts_are_audited_too() -> None:
    found = predictions_of(Bag(), list(bag_loader(ROWS)), progress=False)
    assert found.texts is None
    assert found.names == ("0", "1", "2")


def test_labels_may_be_left_unread() -> None:
    strange = replace(ROWS, labels=tuple(range(40)), label_names=None)
    found = predictions_of(Bag(), bag_loader(strange), labels=False, progress=False)
    assert found.labels is None
    with pytest.raises(DataError, match="no class from 0 to 2"):
        predictions_of(Bag(), bag_loader(strange), progress=False)


def test_a_model_names_its_classes_where_the_rows_do_not() -> None:
    model = with_config(id2label={0: "no", 1: "maybe", 2: "yes"}, num_labels=3)
    rows = without_labels(ROWS)
    found = predictions_of(model, bag_loader(rows), progress=False)
    assert found.label_names == ("no", "maybe", "yes")
    assert predictions_of(Bag(), bag_loader(rows), progress=False).label_names is None
    # Names of the rows come first, and none that do not fit are taken.
    assert predictions_of(model, bag_loader(ROWS), progress=False).label_names == NAMES
    two = replace(ROWS, label_names=("a", "b"))
    assert predictions_of(model, bag_loader(two), progress=False).names == ("no", "maybe", "yes")


def test_rows_and_model_number_their_classes_alike() -> None:
    model = with_config(id2label=dict(enumerate(NAMES[::-1])), num_labels=3)
    with pytest.raises(ConfigError, match=r"rows number.*bad, fair, good.*good, fair, bad"):
        predictions_of(model, bag_loader(ROWS), progress=False)
    with pytest.raises(ConfigError, match="right answers would count as wrong"):
        predictions_of(Point(model), bag_loader(ROWS), progress=False)
    assert names_for(None, model) == [NAMES[::-1]]


# ------------------------------------------------------------------------------- order and number


def shuffled() -> DataLoader[Any]:
    return DataLoader(bag_loader(ROWS).dataset, 8, shuffle=True, collate_fn=pad)


def weighted() -> DataLoader[Any]:
    sampler = WeightedRandomSampler([1.0] * 40, 40)
    return DataLoader(bag_loader(ROWS).dataset, 8, sampler=sampler, collate_fn=pad)


def shuffled_in_batches() -> DataLoader[Any]:
    rows = bag_loader(ROWS).dataset
    inner = shuffled().sampler
    return DataLoader(rows, batch_sampler=BatchSampler(inner, 8, False), collate_fn=pad)


@pytest.mark.parametrize("make", [shuffled, weighted, shuffled_in_batches])
def test_rows_drawn_at_random_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"draws its rows at random.*shuffle=False"):
        predictions_of(Bag(), make(), progress=False)


def test_batches_that_can_be_read_once_are_refused() -> None:
    with pytest.raises(DataError, match="read more than once"):
        predictions_of(Bag(), iter(bag_loader(ROWS)), progress=False)
    with pytest.raises(DataError, match="read more than once"):
        check_order(next(iter(bag_loader(ROWS))))


def test_no_batch_is_no_prediction() -> None:
    with pytest.raises(DataError, match="no batch"):
        predictions_of(Bag(), [], progress=False)


def test_texts_of_batches_in_an_order_of_their_own_are_not_known() -> None:
    rows = bag_loader(ROWS).dataset
    backwards = BatchSampler(list(range(39, -1, -1)), 8, False)  # type: ignore[arg-type]
    assert rows_of(DataLoader(rows, batch_sampler=backwards, collate_fn=pad)) is None
    own = BatchSampler(SequentialSampler(range(40)), 8, False)
    assert rows_of(DataLoader(rows, batch_sampler=own, collate_fn=pad)) is None
    assert rows_of(bag_loader(ROWS)) is ROWS
    assert rows_of([1, 2]) is None


def test_rows_in_another_order_show_by_their_labels() -> None:
    turned = ROWS.take(range(39, -1, -1))
    with pytest.raises(DataError, match=r"labels of the batches are not those of the rows"):
        predictions_of(Bag(), list(bag_loader(ROWS)), turned, progress=False)


def test_rows_of_another_number() -> None:
    with pytest.raises(DataError, match="texts has 39 entries for 40 rows"):
        predictions_of(Bag(), bag_loader(ROWS), ROWS.take(range(39)), progress=False)


# -------------------------------------------------------------------------------- no class a row


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"problem_type": "regression", "num_labels": 3}, "is for regression"),
        ({"problem_type": "multi_label_classification"}, "multi label classification"),
        ({"num_labels": 1}, "RealPredictions"),
    ],
)
def test_a_model_says_that_it_does_not_choose_a_class(config: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        predictions_of(with_config(**config), bag_loader(ROWS), progress=False)


@dataclass(frozen=True)
class Outputs:
    """A rival of another likelihood."""

    likelihood: Any
    name: str = "other"

    def predict_loader(self, loader: Any, *, progress: bool = True) -> Any:
        return Point(Bag(), self.likelihood).predict_loader(loader, progress=progress)


@pytest.mark.parametrize("likelihood", [Gaussian(1.0), Bernoulli()], ids=repr)
def test_other_outputs_are_refused_with_the_way_out(likelihood: Any) -> None:
    rows = without_labels(ROWS)
    with pytest.raises(DataError, match=r"one class a row.*one at a time.*RealPredictions"):
        predictions_of(Outputs(likelihood), bag_loader(rows), progress=False)


def test_what_a_model_was_is_what_it_is() -> None:
    model = Bag().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (predictions_of(model, bag_loader(ROWS), progress=False) for _ in range(2))
    assert model.training
    assert (one.probabilities == two.probabilities).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rows_may_be_given_without_labels_of_their_own() -> None:
    rows: TextData = without_labels(ROWS)
    found = predictions_of(nn.Sequential(Flat()), flat(), rows, progress=False)
    assert found.labels is not None
    assert found.texts == ROWS.texts


class Flat(nn.Linear):
    """A model of plain tensors."""

    def __init__(self) -> None:
        super().__init__(4, 3)


def flat() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(20, 4), torch.arange(20) % 3) for _ in range(2)]
