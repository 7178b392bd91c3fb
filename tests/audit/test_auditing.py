"""`audit`: what it is made of, for every kind of subject, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.audit import Plan, Predictions, audit
from posthoc_bhpeft.audit.decisions import at_most_errors, conformal_sets, review_share
from posthoc_bhpeft.audit.drift import drift
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, METRICS
from posthoc_bhpeft.audit.metrics.measuring import compare, detect, measure
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.slices import slices
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.predictive import UNCERTAINTIES, Prediction
from posthoc_bhpeft.rivals import Dropout, Point, Rival
from tests.audit.audits import predictions
from tests.audit.bags import NAMES, Bag, bag_loader, bag_posterior, bag_rows, without_labels

FAST = Plan(resamples=20)
ROWS = bag_rows(90)


@dataclass(frozen=True)
class Fixed:
    """A rival that says one thing about every row."""

    p: tuple[float, ...] = (0.5, 0.3, 0.2)
    name: str = "always the same"

    def predict_loader(self, loader: Any, *, progress: bool = True) -> Prediction:
        labels = torch.cat([batch["labels"] for batch in loader])
        p = torch.tensor(self.p, dtype=torch.float64).repeat(len(labels), 1)
        doubt = -(p * p.log()).sum(1)
        zero = torch.zeros_like(doubt)
        return Prediction(p.log(), p, None, doubt, doubt, zero, labels)


@pytest.fixture(scope="module")
def bayes() -> BayesianPeft:
    return bag_posterior()


def seen(subject: Any, rows: TextData = ROWS, **options: Any) -> Audit:
    plan = options.pop("plan", FAST)
    return audit(subject, bag_loader(rows), plan=plan, progress=False, **options)


def probabilities(model: nn.Module, rows: TextData) -> np.ndarray[Any, Any]:
    """One row at a time, so that no order can be wrong."""
    loader = bag_loader(rows, batch_size=1, by_length=False)
    with torch.no_grad():
        outputs = [model(b["input_ids"], b["attention_mask"]) for b in loader]
    return torch.cat(outputs).softmax(-1).numpy()


# ------------------------------------------------------------------------------------ the subject


def test_a_model_without_posterior_is_measured_at_its_weights() -> None:
    found = seen(Bag())
    assert found.subject.name == "MAP"
    np.testing.assert_allclose(
        found.subject.predictions.probabilities, probabilities(Bag(), ROWS), atol=1e-12
    )


def test_rows_stand_in_their_order_though_batches_are_sorted_by_length() -> None:
    loader = bag_loader(ROWS)
    assert loader.sampler.order != tuple(range(90))  # type: ignore[attr-defined]
    said = seen(Bag()).subject.predictions
    assert said.texts == ROWS.texts
    assert tuple(said.labels.tolist()) == ROWS.labels
    assert said.columns == dict(ROWS.columns)
    assert said.label_names == NAMES
    rivals = {"other": Point(Bag(1))}
    (other,) = seen(Bag(), rivals=rivals).rivals
    expected = probabilities(Bag(1), ROWS)
    np.testing.assert_allclose(other.predictions.probabilities, expected, atol=1e-12)


def test_a_posterior_has_doubts_of_its_own_and_says_how_it_was_made(bayes: BayesianPeft) -> None:
    found = seen(bayes)
    said = found.subject.predictions
    assert found.subject.name == "ours"
    assert (said.score("epistemic") > 0).all()
    assert said.about["predictive"] == repr(bayes.predictive)
    assert said.about["Posterior"] == bayes.explain()
    plain = probabilities(bayes.model, ROWS)
    assert (said.confidence <= plain.max(1) + 1e-9).all()
    assert said.confidence.mean() < plain.max(1).mean() - 0.01


def test_a_rival_may_be_the_subject() -> None:
    found = seen(Fixed())
    assert found.subject.name == "always the same"
    assert found.subject.figures["accuracy"].estimate == np.mean(np.array(ROWS.labels) == 0)


def test_predictions_need_no_loader() -> None:
    given = predictions(60)
    found = audit(given, plan=FAST)
    assert found.subject.predictions is given
    assert found.subject.name == "predictions"
    assert found.data == ""


@pytest.mark.parametrize("subject", ["folder", {"p": 1}, None, Point], ids=str)
def test_what_cannot_predict_is_named(subject: Any) -> None:
    with pytest.raises(ConfigError, match=rf"A {type(subject).__name__} cannot be audited.*read_p"):
        audit(subject, bag_loader(ROWS))
    with pytest.raises(ConfigError, match="cannot be audited"):
        audit(predictions(60), rivals={"other": subject})


def test_a_model_needs_a_loader() -> None:
    with pytest.raises(ConfigError, match="pass a loader of held-out rows"):
        audit(Bag())
    with pytest.raises(ConfigError, match="pass a loader of held-out rows"):
        audit(predictions(60), rivals={"model": Bag()})


# --------------------------------------------------------------------------------------- its parts


def test_every_part_is_what_the_part_alone_would_say(bayes: BayesianPeft) -> None:
    plan = Plan(score="total", max_error=0.4, max_review=0.2, sets=0.2, resamples=20, seed=3)
    earlier, strange = predictions(60, seed=4), predictions(40, seed=5)
    given, other = predictions(80, seed=1), predictions(80, seed=1, scores=False)
    other = replace(other, probabilities=0.5 * other.probabilities + 0.5 / 3)
    found = audit(given, rivals={"x": other}, outside=strange, reference=earlier, plan=plan)
    settings: dict[str, Any] = {"resamples": 20, "level": 0.95}

    def chance() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    assert found.subject.figures == measure(given, score="total", generator=chance(), **settings)
    # The rival has no such score, so it is ranked by its confidence.
    assert found.rivals[0].figures == measure(other, generator=chance(), **settings)
    assert found.differences["x"] == compare(
        given, other, score="total", generator=chance(), **settings
    )
    told = detect(given, replace(strange, labels=None), generator=chance(), **settings)
    assert found.subject.detection == told
    assert found.decisions == (
        at_most_errors(given, 0.4, score="total"),
        review_share(given, 0.2, score="total"),
    )
    assert found.sets == conformal_sets(given, 0.2)
    assert found.slices == slices(given)
    assert found.drift == drift(given, earlier, seed=3)
    assert found.level == 0.95


def test_the_level_reaches_every_interval() -> None:
    given, wide, narrow = predictions(80), *(Plan(resamples=50, level=v) for v in (0.99, 0.5))
    other = replace(predictions(80, seed=9), labels=given.labels)
    both = [audit(given, rivals={"x": other}, reference=other, plan=p) for p in (wide, narrow)]
    for pick in (
        lambda a: a.subject.figures["nll"],
        lambda a: a.differences["x"]["nll"],
        lambda a: a.slices[0].accuracy,
        lambda a: a.drift.uncertainty,
    ):
        one, two = (pick(each) for each in both)
        assert one.high - one.low > 1.3 * (two.high - two.low)
    assert [a.level for a in both] == [0.99, 0.5]
    assert "99 %" in both[0].decisions[0].guarantee


def test_a_rival_is_measured_on_the_same_resamples(bayes: BayesianPeft) -> None:
    found = seen(bayes, rivals={"itself": bayes})
    assert found.rivals[0].figures == found.subject.figures
    assert set(found.differences) == {"itself"}
    nll = found.differences["itself"]["nll"]
    assert (nll.estimate, nll.low, nll.high) == (0, 0, 0)
    assert [m.name for m in METRICS] == list(found.differences["itself"])


def test_rivals_stand_in_the_order_given(bayes: BayesianPeft) -> None:
    rivals: dict[str, Any] = {"b": Bag(1), "a": Fixed(), "c": Dropout(Bag())}
    found = seen(bayes, rivals=rivals)
    assert [rival.name for rival in found.rivals] == ["b", "a", "c"]
    assert list(found.differences) == ["b", "a", "c"]
    assert len({rival.figures["nll"].estimate for rival in found.rivals}) == 3


def test_what_is_not_asked_for_is_not_there() -> None:
    plan = Plan(max_error=None, max_review=None, sets=None, columns=(), resamples=20)
    found = audit(predictions(60), plan=plan)
    assert (found.decisions, found.sets, found.slices, found.drift) == ((), None, (), None)
    assert (found.rivals, found.differences, found.subject.detection) == ((), {}, {})


# ------------------------------------------------------------------------------------- other rows


def test_rows_outside_are_seen_by_every_model_and_their_labels_by_none(
    bayes: BayesianPeft,
) -> None:
    strange = bag_rows(30, 7, labels=tuple(range(100, 130)), label_names=None)
    found = seen(bayes, rivals={"MAP": Point(bayes.model)}, outside=bag_loader(strange))
    assert list(found.subject.detection) == ["confidence", *UNCERTAINTIES]
    assert list(found.subject.detection["total"]) == [m.name for m in DETECTION]
    assert found.rivals[0].detection["confidence"] != found.subject.detection["confidence"]


def test_rows_outside_may_call_their_classes_as_they_like(bayes: BayesianPeft) -> None:
    strange = bag_rows(30, 7, label_names=NAMES[::-1])
    assert seen(bayes, outside=bag_loader(strange)).subject.detection


def test_predictions_outside_are_those_of_the_subject_alone(bayes: BayesianPeft) -> None:
    found = seen(bayes, rivals={"MAP": Point(bayes.model)}, outside=predictions(30))
    assert found.subject.detection
    assert not found.rivals[0].detection


def test_a_reference_is_seen_by_the_subject_with_its_labels(bayes: BayesianPeft) -> None:
    plan = Plan(time="day", resamples=20)
    earlier = bag_rows(80, 8)
    found = seen(bayes, reference=bag_loader(earlier), plan=plan).drift
    assert found is not None
    assert (found.rows, found.reference_rows) == (90, 80)
    assert found.accuracy is not None
    assert found.uncertainty_name == "epistemic"
    assert len(found.periods) == 4
    assert [one.of for one in found.trends] == ["epistemic", "accuracy"]
    assert found.covariate_on == "texts"


def test_a_reference_without_labels(bayes: BayesianPeft) -> None:
    found = seen(bayes, reference=bag_loader(without_labels(bag_rows(80, 8)))).drift
    assert found is not None
    assert found.accuracy is None
    assert found.estimated_labels is None


@pytest.mark.parametrize("name", ["outside", "reference"])
def test_predictions_cannot_be_shown_other_rows(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"nothing can predict the rows of {name}="):
        audit(predictions(60), **{name: bag_loader(ROWS)})


def test_other_rows_are_about_the_same_classes() -> None:
    message = r"subject has 3 classes \(class 0, .*outside= has 4 classes"
    with pytest.raises(DataError, match=message):
        audit(predictions(60), outside=predictions(30, classes=4), plan=FAST)


# --------------------------------------------------------------------------- rows without labels


def test_rows_without_labels_have_no_figures_but_a_threshold(bayes: BayesianPeft) -> None:
    rivals = {"MAP": Point(bayes.model)}
    found = seen(bayes, without_labels(ROWS), rivals=rivals, reference=bag_loader(ROWS))
    assert (found.subject.figures, found.slices, found.sets) == ({}, (), None)
    assert found.differences == {"MAP": {}}
    assert [d.goal for d in found.decisions] == ["at most 10 % of the rows reviewed"]
    assert found.drift is not None


def test_groups_need_labels(bayes: BayesianPeft) -> None:
    with pytest.raises(DataError, match="Groups by shop are compared by their right answers"):
        seen(bayes, without_labels(ROWS), plan=Plan(columns=["shop"]))


# --------------------------------------------------------------------------------- strange rows


def test_one_row() -> None:
    found = audit(predictions(1), plan=FAST)
    assert found.slices == ()
    assert [d.feasible for d in found.decisions] == [False, False]
    assert found.sets is not None
    assert not found.sets.feasible
    assert found.subject.figures["accuracy"].estimate in (0.0, 1.0)


def test_no_row() -> None:
    with pytest.raises(DataError, match="no rows, so there is nothing to audit"):
        audit(predictions(60).take([]))


def test_rows_of_one_class() -> None:
    given = replace(predictions(60), labels=np.zeros(60, dtype=np.int64))
    found = audit(given, plan=FAST)
    assert found.subject.figures["accuracy"].estimate == (given.predicted == 0).mean()
    assert np.isfinite(found.subject.figures["macro_f1"].estimate)


def test_one_answer_to_every_row() -> None:
    found = seen(Fixed())
    assert {one.column for one in found.slices} >= {"shop", "true class"}
    # Nothing can be ranked, so only handing over no row, or each, can be promised.
    assert found.decisions[0].threshold in (-np.inf, np.inf)


# ---------------------------------------------------------------------------------------- columns


def test_columns_are_chosen_and_each_counts_once() -> None:
    plan = Plan(columns=["shop", "shop"], resamples=20)
    found = seen(Bag(), plan=plan).slices
    assert [one.column for one in found] == ["shop", "shop"]
    assert {one.value for one in found} == {"north", "south"}


def test_rows_may_be_given_beside_a_loader_that_does_not_know_them() -> None:
    batches = list(bag_loader(ROWS, by_length=False))
    found = audit(Bag(), batches, rows=ROWS, plan=FAST, progress=False)
    assert found.subject.predictions.texts == ROWS.texts
    assert found.data == "bags, test"
    assert audit(Bag(), batches, plan=FAST, progress=False).subject.predictions.texts is None


@pytest.mark.parametrize("name", ["planet", "length"])
def test_a_column_that_is_not_there(name: str) -> None:
    expected = rf"no column '{name}'; the rows have shop, day\. .*'text length \(words\)'"
    with pytest.raises(DataError, match=expected):
        seen(Silent(), plan=Plan(columns=[name]))
    with pytest.raises(DataError, match="that says when; the rows have shop, day"):
        seen(Silent(), plan=Plan(time=name), reference=bag_loader(ROWS))


def test_the_built_in_groupings_say_nothing_about_time() -> None:
    with pytest.raises(DataError, match="no column 'predicted class' that says when"):
        audit(predictions(60), reference=predictions(60), plan=Plan(time="predicted class"))


class Silent(nn.Module):
    """Must not be asked: what is wrong is said before any pass."""

    def forward(self, **_: Any) -> Any:
        raise AssertionError("a pass was made")


def test_time_needs_a_reference() -> None:
    with pytest.raises(ConfigError, match="pass reference= too"):
        seen(Silent(), plan=Plan(time="day"))


# ------------------------------------------------------------------------------------------ scores


def test_a_score_that_no_model_has_is_said_before_any_pass() -> None:
    with pytest.raises(ConfigError, match="no score 'doubt'; a model has confidence, total"):
        seen(Silent(), plan=Plan(score="doubt"))


def test_a_score_that_predictions_have_not() -> None:
    with pytest.raises(DataError, match="no score 'doubt'; these predictions have confidence"):
        audit(predictions(60, scores=False), plan=Plan(score="doubt"))


def test_a_score_of_ones_own_ranks() -> None:
    given = predictions(60, scores=False)
    mine = {"mine": np.where(given.right, 0.0, 1.0)}
    plan = Plan(score="mine", max_error=0.2, resamples=20)
    found = audit(replace(given, scores=mine), plan=plan)
    assert found.decisions[0].score == "mine"
    assert found.subject.figures["aurc"].estimate < audit(given, plan=FAST).subject.figures[
        "aurc"
    ].estimate  # fmt: skip


def test_a_score_that_is_the_same_everywhere_ranks_nothing() -> None:
    with pytest.raises(DataError, match=r"'epistemic' is 0 for every row.*Use 'confidence'"):
        seen(Bag(), plan=Plan(score="epistemic"))


# ------------------------------------------------------------------------------------------ rivals


def test_a_name_is_taken_once(bayes: BayesianPeft) -> None:
    with pytest.raises(ConfigError, match="both called 'ours'"):
        seen(Silent(), name="ours", rivals={"ours": bayes})
    with pytest.raises(ConfigError, match="both called 'MAP'"):
        seen(Silent(), rivals={"MAP": bayes})
    assert seen(bayes, name="mine", rivals={"ours": bayes}).subject.name == "mine"


REFUSED: dict[str, tuple[Predictions, str]] = {
    "fewer rows": (predictions(59), "60 rows and the rival 'x' 59"),
    "more classes": (predictions(60, classes=4), "the rival 'x' has 4 classes"),
    "classes in another order": (
        replace(predictions(60), label_names=("class 1", "class 0", "class 2")),
        r"has 3 classes \(class 1, class 0, class 2\)",
    ),
    "no labels": (predictions(60, labels=False), "labels for the subject and none for the rival"),
    "other labels": (
        replace(predictions(60), labels=(predictions(60).labels + 1) % 3),  # type: ignore[operator]
        "60 of 60 labels of the subject and the rival 'x' differ",
    ),
    "other texts": (
        replace(predictions(60), texts=("other", *predictions(60).texts[1:])),  # type: ignore[index]
        "1 of 60 texts of the subject and the rival 'x' differ",
    ),
}


@pytest.mark.parametrize(("rival", "message"), REFUSED.values(), ids=REFUSED)
def test_only_the_same_rows_and_classes_are_compared(rival: Predictions, message: str) -> None:
    with pytest.raises(DataError, match=message):
        audit(predictions(60), rivals={"x": rival}, plan=FAST)


def test_labels_of_the_rival_alone_are_refused_too() -> None:
    with pytest.raises(DataError, match="labels for the rival 'x' and none for the subject"):
        audit(predictions(60, labels=False), rivals={"x": predictions(60)}, plan=FAST)


def test_names_of_a_rivals_classes_may_be_others() -> None:
    other = replace(predictions(60), label_names=("a", "b", "c"))
    assert audit(predictions(60), rivals={"x": other}, plan=FAST).rivals


# ------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_error": 5}, "max_error is 5"),
        ({"max_review": 0.0}, "max_review is 0"),
        ({"sets": 1.0}, "sets is 1"),
        ({"level": 95}, "level"),
        ({"resamples": 0}, "resamples is 0"),
        ({"columns": "shop"}, r"it must be a list: columns=\['shop'\]"),
    ],
)
def test_plans_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(**settings)


def test_a_seed_tells_everything_random() -> None:
    one, two, other = (
        audit(predictions(60), reference=predictions(60, seed=2), plan=Plan(resamples=20, seed=s))
        for s in (1, 1, 2)
    )
    assert one.to_dict() == two.to_dict()
    assert one.subject.figures["nll"] != other.subject.figures["nll"]
    assert one.drift.uncertainty != other.drift.uncertainty  # type: ignore[union-attr]


def test_rivals_are_rivals() -> None:
    assert isinstance(Fixed().name, str)
    fixed: Rival = Fixed()
    assert seen(Bag(), rivals={"x": fixed}).rivals[0].name == "x"
