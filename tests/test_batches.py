"""Batches of every common form are understood, and a model is left in the mode it was in."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from posthoc_bhpeft.batches import (
    evaluating,
    forward,
    labelled_rows,
    look_through,
    move,
    split_batch,
)
from posthoc_bhpeft.errors import DataError
from tests.hybrid.families import tiny_batch
from tests.models import hybrid, linear

IDS, LABELS = torch.tensor([[3, 4], [5, 6]]), torch.tensor([0, 1])

FORMS: dict[str, Any] = {
    "dict": {"input_ids": IDS, "labels": LABELS},
    "dict with label": {"input_ids": IDS, "label": LABELS},
    "dict with label_ids": {"input_ids": IDS, "label_ids": LABELS},
    "labels as a list": {"input_ids": IDS, "labels": [0, 1]},
    "BatchEncoding": BatchEncoding({"input_ids": IDS, "labels": LABELS}),
    "pair of a dict and labels": ({"input_ids": IDS}, LABELS),
    "list of a dict and labels": [{"input_ids": IDS}, LABELS],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_batch(form: str) -> None:
    inputs, labels = split_batch(FORMS[form])
    assert isinstance(inputs, dict | BatchEncoding)
    assert list(inputs) == ["input_ids"]
    assert torch.equal(inputs["input_ids"], IDS)
    assert labels is not None
    assert torch.equal(labels, LABELS)


def test_a_pair_of_tensors() -> None:
    inputs, labels = split_batch((IDS, LABELS))
    assert inputs is IDS
    assert labels is LABELS


@pytest.mark.parametrize(
    "batch", [IDS, {"input_ids": IDS}, (IDS, None)], ids=["bare", "dict", "pair"]
)
def test_a_batch_may_have_no_labels(batch: Any) -> None:
    assert split_batch(batch)[1] is None


def test_a_batch_is_not_changed() -> None:
    batch = {"input_ids": IDS, "labels": LABELS}
    split_batch(batch)
    assert list(batch) == ["input_ids", "labels"]


def test_only_tensors_are_moved() -> None:
    inputs = {"input_ids": IDS, "use_cache": False}
    moved = move(inputs, torch.device("meta"))
    assert isinstance(moved, dict)
    assert moved["input_ids"].device.type == "meta"
    assert moved["use_cache"] is False


class Returning(nn.Module):
    """Returns its input through a function."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, given: Tensor) -> Any:
        return self.change(given)


RETURNED = {
    "a tensor": lambda f: f,
    "a tuple": lambda f: (f, "more"),
    "an object with logits": lambda f: type("Output", (), {"logits": f}),
}


@pytest.mark.parametrize("form", RETURNED)
def test_outputs_are_found(form: str) -> None:
    given = torch.ones(2, 3)
    assert torch.equal(forward(Returning(RETURNED[form]), given), given)


def test_one_output_a_row_becomes_a_column() -> None:
    assert forward(Returning(lambda f: f[:, 0]), torch.ones(2, 3)).shape == (2, 1)


def test_half_precision_outputs_become_float32() -> None:
    assert forward(Returning(lambda f: f), torch.ones(2, 3).bfloat16()).dtype == torch.float32


def test_modes_are_put_back_one_by_one() -> None:
    model = nn.Sequential(linear(2, 2), nn.Dropout(), nn.Dropout())
    model.train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    with suppress(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before


def test_rows_without_a_label() -> None:
    assert labelled_rows(torch.tensor([0, -100, 2])).tolist() == [True, False, True]
    assert labelled_rows(torch.tensor([0.0, -100.0])).tolist() == [True, True]


def test_looking_through_counts_rows() -> None:
    batches = [(IDS, LABELS), (IDS, torch.tensor([-100, 1]))]
    seen: list[list[int]] = []
    summary = look_through(batches, lambda _, labels: seen.append(labels.tolist()))
    assert (summary.n_rows, summary.n_ignored) == (3, 1)
    assert seen == [[0, 1], [1]]


def test_an_error_names_the_batch() -> None:
    def refuse(_: Any, labels: Tensor) -> None:
        if 2 in labels:
            raise DataError("no twos")

    with pytest.raises(DataError, match="Val, batch 1: no twos"):
        look_through([(IDS, LABELS), (IDS, LABELS + 1)], refuse, "Val")


def test_a_real_model_takes_a_real_batch() -> None:
    model = hybrid()
    inputs, _ = split_batch(tiny_batch(model))
    assert forward(model, inputs).shape == (4, 3)
