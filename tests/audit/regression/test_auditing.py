from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from posthoc_bhpeft import Gaussian, bayesianize
from posthoc_bhpeft.audit.regression import (
    REGRESSION,
    RealPredictions,
    RegressionPlan,
    audit_regression,
    fit_noise,
    is_regression,
    real_predictions_of,
)
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.rivals import Point
from tests.audit.regression.made import honest, point
from tests.models import mlp, seeded

QUICK = RegressionPlan(resamples=50)


def loader_of(rows: int = 24, seed: int = 0) -> list[Any]:
    """Batches whose targets are linear in their inputs, with noise."""
    generator = seeded(seed)
    inputs = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    targets = (inputs.sum(1) + 0.5 * noise)[:, None]
    return list(zip(inputs.split(8), targets.split(8), strict=True))


@pytest.fixture(scope="module")
def model() -> Any:
    return mlp(4, 1)


def test_an_audit_of_a_posterior(model: Any) -> None:
    bayes = bayesianize(model, loader_of(), likelihood=Gaussian(), progress=False)
    held_out = loader_of(40, seed=1)
    rivals = {"MAP": Point(model, bayes.likelihood)}
    found = audit_regression(bayes, held_out, rivals=rivals, plan=QUICK, progress=False)
    said = found.subject.predictions
    prediction = bayes.predict_loader(held_out, progress=False)
    assert prediction.covariance is not None
    np.testing.assert_allclose(said.epistemic, prediction.covariance[:, 0, 0], rtol=1e-9)
    np.testing.assert_allclose(said.noise, bayes.likelihood.dispersion, rtol=1e-9)
    assert found.subject.name == "ours"
    assert {"predictive", "Posterior"} == set(said.about)
    assert list(found.subject.figures) == [metric.name for metric in REGRESSION]
    assert found.differences["MAP"]["rmse"].estimate == pytest.approx(0.0, abs=1e-12)
    assert not found.rivals[0].predictions.epistemic.any()
    assert found.data == ""


def test_noise_of_held_out_rows(model: Any) -> None:
    held_out = loader_of(40, seed=1)
    errors = torch.cat([(model(x) - y).flatten() for x, y in held_out])
    rival = fit_noise(model, held_out, progress=False)
    assert rival.likelihood.dispersion == pytest.approx((errors**2).mean().item())
    exact = [(x, model(x).detach()) for x, _ in held_out]
    with pytest.raises(DataError, match="makes no error at all on these 40 rows"):
        fit_noise(model, exact, progress=False)


def test_a_model_without_noise_is_refused_before_any_pass(model: Any) -> None:
    for subject in (model, Point(model, Gaussian())):
        with pytest.raises(ConfigError, match=r"fit_noise\(model, validation_loader\)"):
            audit_regression(subject, loader_of(), progress=False)


def test_what_predicts_numbers(model: Any) -> None:
    class Config:
        problem_type: str | None = None
        num_labels = 1

    tuned = mlp(4, 1)
    assert not is_regression(tuned)
    tuned.config = Config()  # type: ignore[assignment]
    assert is_regression(tuned)
    tuned.config.problem_type = "single_label_classification"
    assert not is_regression(tuned)
    tuned.config.problem_type = "regression"
    assert is_regression(tuned)
    assert is_regression(Point(model, Gaussian(1.0)))
    assert not is_regression(Point(model))
    assert is_regression(honest(5))


def test_to_dict_is_strict_json() -> None:
    rows = honest(200, columns={"site": ("a", "b") * 100}, texts=("one two",) * 200)
    plan = RegressionPlan(tolerance=1.0, resamples=50)
    found = audit_regression(rows, rivals={"MAP": point(rows)}, plan=plan)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["figures"]["MAP"]["rmse"]["estimate"] == found.rivals[0].figures["rmse"].estimate
    assert set(read["differences"]) == {"MAP"}
    assert [c["level"] for c in read["coverage"]["predictions"]] == [0.5, 0.8, 0.9, 0.95]
    assert read["conformal"]["factor"] == found.conformal.factor  # type: ignore[union-attr]
    assert read["tolerance"] == 1.0
    assert len(read["decisions"]) == 2
    assert {one["column"] for one in read["groups"]} >= {"site"}
    tiny = audit_regression(honest(5), plan=QUICK).to_dict()
    assert tiny["conformal"]["factor"] == "Infinity"
    json.dumps(tiny, allow_nan=False)


def test_the_plan_decides_what_is_measured() -> None:
    plan = RegressionPlan(
        max_review=None, miss=None, columns=(), levels=(0.7,), resamples=20, level=0.8
    )
    found = audit_regression(honest(100), plan=plan, name="mine")
    assert found.subject.name == "mine"
    assert (found.decisions, found.conformal, found.groups) == ((), None, ())
    assert [one.level for one in found.subject.coverage] == [0.7]
    assert audit_regression(point(honest(100)), plan=QUICK).decisions == ()


def test_without_targets_only_the_review_is_left() -> None:
    found = audit_regression(replace(honest(100), targets=None), plan=QUICK)
    assert found.subject.figures == {}
    assert found.subject.coverage == ()
    assert len(found.decisions) == 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_card_row() -> None:
    found = audit_regression(honest(100), plan=QUICK)
    lines = found.card_row(("rmse",)).splitlines()
    assert lines[0] == "| data | rows | rmse |"
    assert lines[2].startswith("| – | 100 | ")


def test_texts_and_columns_of_a_loader_come_along(model: Any) -> None:
    held_out = loader_of(16)
    targets = tuple(torch.cat([y for _, y in held_out]).flatten().tolist())
    rows = TextData(
        tuple(map(str, range(16))), labels=targets, regression=True,
        columns={"site": tuple(range(16))}, source="here", split="test",
    )  # fmt: skip
    subject = Point(model, Gaussian(1.0))
    said = real_predictions_of(subject, held_out, rows, progress=False)
    assert said.texts == rows.texts
    assert said.columns == rows.columns
    other = rows.take(range(15, -1, -1))
    with pytest.raises(DataError, match="not those of the rows"):
        real_predictions_of(subject, held_out, other, progress=False)
    plan = RegressionPlan(resamples=5, columns=[])
    found = audit_regression(subject, held_out, rows=rows, plan=plan, progress=False)
    assert found.data == "here, test"


def test_what_an_audit_refuses(model: Any) -> None:
    subject = Point(model, Gaussian(1.0))
    with pytest.raises(ConfigError, match="A str cannot be audited"):
        audit_regression("model", [], progress=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pass a loader of held-out rows"):
        audit_regression(subject)
    shuffled = DataLoader([({"x": 1}, 0.0)], shuffle=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at random"):
        audit_regression(subject, shuffled, progress=False)
    with pytest.raises(ConfigError, match="both called 'predictions'"):
        audit_regression(honest(9), rivals={"predictions": honest(9)})
    with pytest.raises(DataError, match="There is no column 'shop'; the rows have none"):
        audit_regression(honest(9), plan=RegressionPlan(columns=["shop"]))
    with pytest.raises(DataError, match="9 rows and other 8"):
        audit_regression(honest(9), rivals={"other": honest(8)}, plan=QUICK)
    with pytest.raises(DataError, match=r"class probabilities.*Call audit"):
        audit_regression(Point(mlp(4, 3)), [torch.zeros(2, 4).double()], progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_review": 1.0}, "max_review is 1"),
        ({"miss": 0.0}, "miss is 0"),
        ({"levels": (0.5, 1.5)}, "level is 1.5"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"resamples": 0}, "resamples is 0"),
        ({"columns": "site"}, r"it must be a list: columns=\['site'\]"),
    ],
)
def test_a_plan_out_of_range(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RegressionPlan(**change)


def test_an_audit_is_not_of_no_rows() -> None:
    with pytest.raises(DataError, match="at least one row"):
        RealPredictions.checked(np.ones(0), np.ones(0))
