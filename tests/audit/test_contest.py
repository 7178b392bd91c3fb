"""`Contest`: every rival by its name, what it needs, and that each is another one."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from posthoc_bhpeft import MAP, BayesianPeft
from posthoc_bhpeft.audit import Contest, Plan, RivalName, audit
from posthoc_bhpeft.audit.contest import (
    NEEDS_HELD_OUT,
    NEEDS_POSTERIOR,
    NEEDS_TRAINING,
    REMEDIES,
    Scaled,
    rival_name,
)
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.rivals import Point, Rival, fit_temperature
from tests.audit.bags import Bag, bag_loader, bag_posterior, bag_rows, without_labels

ROWS = bag_loader(bag_rows(60))
HELD_OUT = bag_loader(bag_rows(50, 21))
TRAINING = bag_loader(bag_rows(40, 50))
NAMES = {
    RivalName.MAP: "MAP",
    RivalName.TEMPERATURE: "temperature (50 held-out rows)",
    RivalName.DROPOUT: "MC dropout",
    RivalName.LAST_LAYER: "last-layer Laplace",
    RivalName.DIAGONAL: "diagonal Laplace",
    RivalName.SCALED: "ours + temperature (50 held-out rows)",
    RivalName.ENSEMBLE: "ensemble of 2",
}


@pytest.fixture(scope="module")
def bayes() -> BayesianPeft:
    return bag_posterior()


@pytest.fixture(scope="module")
def everybody(bayes: BayesianPeft) -> dict[str, Rival]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posthoc_bhpeft.rivals.ensemble.load_member", member)
        contest = Contest(bayes, HELD_OUT, TRAINING, ["seed-1"], progress=False)
        return contest.rivals(list(RivalName))


def member(folder: Path) -> nn.Module:
    """A member as if it had been trained from another seed."""
    return Bag(seed=int(folder.name[-1]))


def test_every_name_makes_a_rival(everybody: dict[str, Rival]) -> None:
    assert list(everybody) == [NAMES[name] for name in RivalName]
    assert all(rival.name == name for name, rival in everybody.items())


def test_no_two_rivals_say_the_same_and_none_says_what_we_do(
    everybody: dict[str, Rival], bayes: BayesianPeft
) -> None:
    said = {"ours": bayes.predict_loader(ROWS, progress=False)}
    said |= {name: rival.predict_loader(ROWS, progress=False) for name, rival in everybody.items()}
    labels = said["ours"].labels
    for name, prediction in said.items():
        assert len(prediction) == 60, name
        assert (prediction.labels == labels).all(), name
    p = {name: one.probabilities.double().numpy() for name, one in said.items()}  # type: ignore[union-attr]
    for one, other in combinations(p, 2):
        assert np.abs(p[one] - p[other]).max() > 1e-3, (one, other)


def test_an_audit_measures_them_on_the_same_rows(
    everybody: dict[str, Rival], bayes: BayesianPeft
) -> None:
    found = audit(bayes, ROWS, rivals=everybody, plan=Plan(resamples=10), progress=False)
    texts = found.subject.predictions.texts
    assert texts is not None
    assert [rival.name for rival in found.rivals] == list(NAMES.values())
    assert all(rival.predictions.texts == texts for rival in found.rivals)
    assert set(found.differences) == set(NAMES.values())
    point = found.rivals[0].predictions
    plain = bayes.predict_loader(ROWS, MAP(), progress=False)
    order = np.argsort(ROWS.sampler.order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(point.probabilities, plain.probabilities.numpy()[order], atol=1e-12)  # type: ignore[union-attr]


def test_temperatures_are_fitted_on_the_rows_held_out(
    everybody: dict[str, Rival], bayes: BayesianPeft
) -> None:
    plain, ours = everybody[NAMES[RivalName.TEMPERATURE]], everybody[NAMES[RivalName.SCALED]]
    assert isinstance(plain, Scaled)
    assert isinstance(ours, Scaled)
    held_out = Point(bayes.model).predict_loader(HELD_OUT, progress=False)
    assert plain.temperature == fit_temperature(held_out)
    assert ours.temperature == fit_temperature(bayes.predict_loader(HELD_OUT, progress=False))
    assert plain.temperature.value != ours.temperature.value
    # A temperature keeps every answer.
    one, two = (r.predict_loader(ROWS, progress=False) for r in (plain, Point(bayes.model)))
    assert (one.predicted == two.predicted).all()


def test_the_first_member_of_the_ensemble_is_the_model_itself(
    everybody: dict[str, Rival], bayes: BayesianPeft
) -> None:
    ensemble: Any = everybody["ensemble of 2"]
    assert ensemble.models[0] is bayes.model
    models = (bayes.model, Bag(1))
    both = [Point(m).predict_loader(ROWS, progress=False).probabilities for m in models]
    expected = (both[0] + both[1]) / 2  # type: ignore[operator]
    found = ensemble.predict_loader(ROWS, progress=False).probabilities
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-12)


def test_a_model_without_posterior_has_rivals_too() -> None:
    found = Contest(Bag(), HELD_OUT, TRAINING, progress=False).rivals(
        ["last-layer", "map", "last-layer"]
    )
    assert list(found) == ["last-layer Laplace", "MAP"]


@pytest.mark.parametrize("name", [n for n in RivalName if n not in ("map", "dropout")])
def test_what_a_rival_needs_is_said_with_the_way_to_give_it(name: RivalName) -> None:
    with pytest.raises(ConfigError) as caught:
        Contest(Bag(), progress=False).rivals([name])
    said = str(caught.value)
    assert said.startswith(f"The rival {name.value!r} needs ")
    assert said.endswith(REMEDIES[name])
    needs = {
        "held-out labelled rows beside those": name in NEEDS_HELD_OUT,
        "the rows the model was trained on": name in NEEDS_TRAINING,
        "checkpoints of further members": name is RivalName.ENSEMBLE,
    }
    assert [words for words, needed in needs.items() if words in said] == [
        words for words, needed in needs.items() if needed
    ]


def test_ours_plus_temperature_needs_a_posterior() -> None:
    contest = Contest(Bag(), HELD_OUT, progress=False)
    assert contest.missing(RivalName.SCALED) == "a posterior"
    assert contest.missing(RivalName.TEMPERATURE) == ""
    assert frozenset({RivalName.SCALED}) == NEEDS_POSTERIOR
    with pytest.raises(ConfigError, match=r"needs a posterior\. It is a posterior \(bayesianize"):
        contest.rivals(["ours-temperature"])


def test_all_needs_are_checked_before_anything_is_fitted() -> None:
    class Never(Bag):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("a pass was made")

    with pytest.raises(ConfigError, match="'diagonal' needs"):
        Contest(Never(), HELD_OUT, progress=False).rivals(["temperature", "diagonal"])


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"no rival 'magic'\. Known: map, temperature, dropout"):
        Contest(Bag()).rivals(["map", "magic"])
    assert rival_name("last-layer") is RivalName.LAST_LAYER


def test_a_model_without_dropout() -> None:
    with pytest.raises(ConfigError, match="needs dropout above 0"):
        Contest(Bag(dropout=0.0)).rivals(["dropout"])


def test_held_out_rows_need_labels() -> None:
    unlabelled = bag_loader(without_labels(bag_rows(50, 21)))
    with pytest.raises(DataError, match="held-out labelled rows"):
        Contest(Bag(), unlabelled, progress=False).rivals(["temperature"])
