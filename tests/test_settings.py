"""Settings as JSON: every public one comes back equal, strangers are told apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from posthoc_bhpeft import (
    KFAC,
    MAP,
    Auto,
    Bernoulli,
    Categorical,
    Contrasts,
    DenseGGN,
    DiagonalGGN,
    EmpiricalFisher,
    Exact,
    Gaussian,
    KroneckerGGN,
    LaplaceBridge,
    Linearized,
    LogOdds,
    MonteCarlo,
    Placed,
    Probit,
    RandomSigns,
    Sampled,
    Softened,
    Subsample,
    Tangent,
    Tempered,
    Tokens,
)
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.settings import SETTINGS, decode, encode

VALUES = [
    KFAC(reduce=True, directions=RandomSigns(3)),
    MAP(),
    Auto(max_passes=5),
    Bernoulli(),
    Categorical(),
    LogOdds(),
    Contrasts(),
    DenseGGN(max_size=7),
    DiagonalGGN(Exact()),
    EmpiricalFisher(),
    Exact(),
    Gaussian(0.25),
    Gaussian(),
    KroneckerGGN(Contrasts()),
    LaplaceBridge(),
    Linearized(MonteCarlo(9, seed=1), centred=False),
    MonteCarlo(3),
    Tempered(0.7, Probit()),
    Placed(KroneckerGGN(), "cpu"),
    Probit(),
    RandomSigns(2),
    Sampled(5, seed=2),
    Softened(2.0, Contrasts()),
    Subsample(100, KroneckerGGN(Contrasts()), seed=2),
    Tangent(3, seed=1),
    Tokens(shift=True),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_round_trip_through_json(value: Any) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_every_setting_is_tried() -> None:
    assert {type(value) for value in VALUES} == set(SETTINGS)


@dataclass(frozen=True)
class Homemade:
    """A setting of a user's own."""

    depth: int = 3


class Bare:
    """A setting of a user's own that is no dataclass, such as a link without fields."""


@pytest.mark.parametrize("value", [Homemade(), Bare()], ids=["setting", "no dataclass"])
def test_a_strangers_setting_is_written_but_not_made_up(value: Any) -> None:
    content = json.loads(json.dumps(encode(value)))
    with pytest.raises(CheckpointError, match=r"predictive=\.\.\."):
        decode(content)
    assert decode(content, strict=False) == content


NUMBERS = [
    (Gaussian(np.float32(0.25)), Gaussian(0.25)),  # type: ignore[arg-type]
    (Gaussian(torch.tensor(0.25)), Gaussian(0.25)),  # type: ignore[arg-type]
    (Gaussian(np.array(0.25)), Gaussian(0.25)),  # type: ignore[arg-type]
    (Linearized(MonteCarlo(np.int64(20))), Linearized(MonteCarlo(20))),  # type: ignore[arg-type]
    (Tempered(np.float64(1.3)), Tempered(1.3)),
    (Linearized(centred=np.bool_(False)), Linearized(centred=False)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("value", "plain"), NUMBERS, ids=repr)
def test_numbers_of_other_libraries_are_numbers(value: Any, plain: Any) -> None:
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == plain
    assert repr(found) == repr(plain)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Gaussian(np.array([0.25])), "Gaussian.noise_variance"),  # type: ignore[arg-type]
        (Gaussian(torch.tensor([0.25])), "Gaussian.noise_variance"),  # type: ignore[arg-type]
        (Gaussian(Decimal("0.25")), "Gaussian.noise_variance"),  # type: ignore[arg-type]
        (Linearized(tolerance=np.array([0.01])), "Linearized.tolerance"),  # type: ignore[arg-type]
        (Homemade((1, {2: 3})), "Homemade.depth[1]"),  # type: ignore[arg-type]
        (object(), "object"),
        (Homemade, "type"),
    ],
    ids=["array", "tensor", "decimal", "inside", "dict", "object", "class"],
)
def test_what_could_not_be_read_again_is_not_written(value: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match="could not be read again") as caught:
        encode(value)
    assert f"The setting {name} is " in str(caught.value)


def test_a_field_of_another_version() -> None:
    with pytest.raises(CheckpointError, match="colour"):
        decode({"type": "Probit", "colour": "red"})


def test_a_temperature_of_numpy_is_written_as_it_is_after_loading() -> None:
    """A review rule knows its predictive by this text."""
    assert repr(Tempered(np.float64(1.3))) == repr(Tempered(1.3))
