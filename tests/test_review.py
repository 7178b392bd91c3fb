"""A rule for review: applied where predictions are made, saved with its posterior, never stale."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft import MAP, BayesianPeft, FixedPrecision, Linearized, Prediction
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.folders import PENDING
from posthoc_bhpeft.predictive import UNCERTAINTIES
from posthoc_bhpeft.review import REVIEW_FILE, ReviewRule, read_rule, review_if, write_rule
from posthoc_bhpeft.sets import APS, LAC, RAPS, SetRule
from tests.hybrid.families import tiny_loader
from tests.tuned import fitted, tuned

PROMISE = "At most 5 % of the automatic answers are wrong."
SETS = SetRule(RAPS(0.1, 2), (0.25, math.inf, 0.5), "The set holds the label.")


@pytest.fixture(scope="module")
def bayes() -> BayesianPeft:
    return fitted()


def rule_between(bayes: BayesianPeft, score: str = "total", sets: SetRule | None = SETS) -> Any:
    """A rule whose threshold parts the eight rows in two halves."""
    prediction = bayes.predict_loader(tiny_loader(bayes.model), progress=False)
    values = getattr(prediction, score).double().sort().values
    middle = float((values[3] + values[4]) / 2)
    return ReviewRule(score, middle, PROMISE, 8, "0" * 64, repr(bayes.predictive), sets)


@pytest.fixture(scope="module")
def ruled(bayes: BayesianPeft) -> BayesianPeft:
    return bayes.with_review(rule_between(bayes))


# --- at prediction ---------------------------------------------------------------------------


def test_review_is_what_the_rule_says(ruled: BayesianPeft) -> None:
    loader = tiny_loader(ruled.model)
    found = ruled.predict_loader(loader, review=True, progress=False)
    rule = ruled.review_rule
    assert rule is not None
    assert found.review is not None
    assert found.sets is not None
    assert found.review.tolist() == (found.total.double() > rule.threshold).tolist()
    assert found.review.sum() == 4
    assert found.sets.shape == (8, 3)
    probabilities = found.probabilities.double()
    probabilities /= probabilities.sum(1, keepdim=True)
    limits = torch.tensor(SETS.thresholds, dtype=torch.float64)
    assert torch.equal(found.sets, SETS.method.strangeness(probabilities) <= limits)
    batch = ruled.predict(loader[0], review=True)
    assert batch.review.tolist() == found.review.tolist()[: len(batch)]


def test_nobody_gets_a_review_without_asking(ruled: BayesianPeft) -> None:
    found = ruled.predict(tiny_loader(ruled.model)[0])
    assert found.review is None
    assert found.sets is None


def test_a_rule_is_no_change_of_the_original(bayes: BayesianPeft, ruled: BayesianPeft) -> None:
    assert bayes.review_rule is None
    assert ruled.posterior is bayes.posterior
    assert ruled.with_review(None).review_rule is None


def test_without_a_rule_the_error_says_how_to_make_one(bayes: BayesianPeft) -> None:
    for call in (bayes.predict, lambda batch, **_: bayes.predict_loader([batch], review=True)):
        with pytest.raises(ConfigError, match=r"no rule.*bhpeft audit .*--save-review"):
            call(tiny_loader(bayes.model)[0], review=True)


def test_another_predictive_is_refused_before_any_work(ruled: BayesianPeft) -> None:
    with pytest.raises(ConfigError, match=r"made with Linearized\(.*come from MAP\(\)"):
        ruled.predict(None, MAP(), review=True)
    batch = tiny_loader(ruled.model)[0]
    assert ruled.predict(batch, Linearized(), review=True).review is not None
    assert ruled.predict(batch, MAP()).review is None


def test_review_follows_the_rows(ruled: BayesianPeft) -> None:
    found = ruled.predict_loader(tiny_loader(ruled.model), review=True, progress=False)
    assert {"review", "sets"} <= found.columns().keys()
    half = Prediction(**{n: None if c is None else c[:4] for n, c in found.columns().items()})
    joined = Prediction.concatenate([half.cpu(), half])
    assert joined.review.tolist() == 2 * found.review[:4].tolist()
    assert joined.sets.tolist() == 2 * found.sets[:4].tolist()


@pytest.mark.parametrize("score", ["confidence", *UNCERTAINTIES])
def test_every_score(score: str) -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]], dtype=torch.float64)
    column = torch.tensor([0.1, 0.9])
    others = {name: torch.tensor([0.9, 0.1]) for name in UNCERTAINTIES}
    prediction = Prediction(
        p.log(), p, None, **{**others, score: column} if score in others else others
    )
    rule = ReviewRule(score, 0.5, PROMISE, 9, "", "MAP()")
    assert rule.apply(prediction).review.tolist() == [False, True]
    # On the threshold a row is answered.
    limit = float(rule.doubt(prediction, p).max())
    assert not replace(rule, threshold=limit).apply(prediction).review.any()


def test_a_score_that_predictions_lack_is_named() -> None:
    rule = ReviewRule("novelty", 0.5, PROMISE, 9, "", "MAP()")
    p = torch.tensor([[0.7, 0.3]])
    zero = torch.zeros(1)
    with pytest.raises(ConfigError, match="'novelty', and these predictions have total, aleatoric"):
        rule.apply(Prediction(p.log(), p, None, zero, zero, zero))


# --- on disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sets",
    [None, SETS, SetRule(LAC(), (0.5,), "p"), SetRule(APS(), (math.inf,), "p")],
    ids=["none", "RAPS", "LAC", "APS"],
)
@pytest.mark.parametrize("threshold", [0.1 + 0.2, math.inf])
def test_a_rule_survives(
    sets: SetRule | None, threshold: float, bayes: BayesianPeft, tmp_path: Path
) -> None:
    rule = replace(rule_between(bayes, sets=sets), threshold=threshold)
    bayes.with_review(rule).save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path, model=bayes.model)
    assert after.review_rule == rule
    assert "Infinity" not in (tmp_path / REVIEW_FILE).read_text()


@pytest.mark.parametrize(
    ("score", "threshold", "said"),
    [
        ("confidence", 0.33585, "1 - max probability > 0.33585"),
        ("epistemic", 0.1 + 0.2, "epistemic > 0.30000000000000004"),
        ("novelty", 2, "novelty > 2.0"),
        ("total", math.inf, "never"),
        ("confidence", -math.inf, "always"),
    ],
)
def test_a_threshold_is_said_as_a_condition(score: str, threshold: float, said: str) -> None:
    assert review_if(score, threshold) == said


def test_the_file_says_which_rows_to_review_and_old_files_are_read(tmp_path: Path) -> None:
    rule = ReviewRule("confidence", 0.25, PROMISE, 8, "0" * 64, "MAP()")
    write_rule(tmp_path, rule, "a" * 64)
    content = json.loads((tmp_path / REVIEW_FILE).read_text())
    assert content.pop("review_if") == "1 - max probability > 0.25"
    assert content["threshold"] == 0.25
    (tmp_path / REVIEW_FILE).write_text(json.dumps(content))
    assert read_rule(tmp_path, "a" * 64) == rule


def test_none_is_none(bayes: BayesianPeft, tmp_path: Path) -> None:
    bayes.save_pretrained(tmp_path)
    assert not (tmp_path / REVIEW_FILE).exists()
    assert BayesianPeft.from_pretrained(tmp_path, model=bayes.model).review_rule is None


def test_a_refit_takes_the_old_rule_away(
    bayes: BayesianPeft, ruled: BayesianPeft, tmp_path: Path
) -> None:
    ruled.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert PROMISE in (tmp_path / "README.md").read_text()
    bayes.save_pretrained(tmp_path)
    assert not (tmp_path / REVIEW_FILE).exists()
    assert PROMISE not in (tmp_path / "README.md").read_text()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@dataclass
class Killed:
    """Every call from the k-th on fails, as if the process had died there."""

    at: int
    count: int = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count >= self.at:
                raise SystemExit("killed")
            return function(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize("keeps", [True, False], ids=["to a rule", "to none"])
def test_killed_at_any_step_the_rule_is_that_of_its_posterior(
    keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tuned()
    first, second = (fitted(model, prior=FixedPrecision(p)) for p in (1.0, 2.0))
    rule = rule_between(first)
    old = first if keeps else first.with_review(rule)
    new = second.with_review(rule) if keeps else second
    seen = set()
    for step in range(1, 16):
        folder = tmp_path / str(step)
        old.save_pretrained(folder)
        with monkeypatch.context() as patch:
            killed = Killed(step)
            patch.setattr(Path, "replace", killed.wrap(Path.replace))
            patch.setattr(Path, "unlink", killed.wrap(Path.unlink))
            patch.setattr(shutil, "rmtree", killed.wrap(shutil.rmtree))
            with suppress(SystemExit):
                new.save_pretrained(folder)
                break
        after = BayesianPeft.from_pretrained(folder, model=model)
        is_new = after.log_marginal_likelihood() == new.log_marginal_likelihood()
        assert after.review_rule == (new if is_new else old).review_rule
        assert not (folder / PENDING).exists()
        seen.add(is_new)
    assert killed.count < step, "every step was failed once"
    assert seen == {True, False}


def edited(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / REVIEW_FILE).read_text())
    (folder / REVIEW_FILE).write_text(json.dumps({**content, **changes}))


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "a newer format": ({"format_version": 9}, r"format version 9.*Update the package"),
    "another posterior": ({"posterior": "0" * 64}, r"another posterior.*`bhpeft audit`"),
    "an unknown score": ({"score": "luck"}, r"'luck' cannot be applied"),
    "a threshold in words": ({"threshold": "high"}, r"does not make sense: ValueError"),
    "a threshold that is NaN": ({"threshold": math.nan}, r"does not make sense.*NaN"),
    "a promise that is none": ({"promise": 3}, r"3 should be a text"),
    "sets that are none": ({"sets": 3}, r"does not make sense: TypeError"),
    "sets by another method": (
        {"sets": {"method": {"type": "MAP"}, "thresholds": [1], "promise": ""}},
        r"MAP\(\) makes no sets",
    ),
    "sets by an unknown method": (
        {"sets": {"method": {"type": "Oracle"}, "thresholds": [1], "promise": ""}},
        r"'Oracle' is not one of this version",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_rule_is_refused(name: str, ruled: BayesianPeft, tmp_path: Path) -> None:
    changes, message = EDITS[name]
    ruled.save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        BayesianPeft.from_pretrained(tmp_path, model=ruled.model)


def test_a_rule_cut_off_is_refused(ruled: BayesianPeft, tmp_path: Path) -> None:
    ruled.save_pretrained(tmp_path)
    path = tmp_path / REVIEW_FILE
    path.write_text(path.read_text()[:-30])
    with pytest.raises(CheckpointError, match="is damaged"):
        BayesianPeft.from_pretrained(tmp_path, model=ruled.model)


def test_a_rule_copied_beside_another_posterior_is_refused(
    ruled: BayesianPeft, tmp_path: Path
) -> None:
    ruled.save_pretrained(tmp_path / "a")
    fitted(ruled.model, prior=FixedPrecision(9.0)).save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "a" / REVIEW_FILE, tmp_path / "b")
    with pytest.raises(CheckpointError, match="belongs to another posterior"):
        BayesianPeft.from_pretrained(tmp_path / "b", model=ruled.model)


def test_a_method_of_ones_own_is_not_saved(bayes: BayesianPeft, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Mine:
        def strangeness(self, probabilities: torch.Tensor) -> torch.Tensor:
            return 1 - probabilities

    rule = rule_between(bayes, sets=SetRule(Mine(), (0.5,), ""))
    with pytest.raises(CheckpointError, match=r"cannot be saved.*Supported: LAC\(\)"):
        bayes.with_review(rule).save_pretrained(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@dataclass
class FakeHub:
    """Keeps what was uploaded, less what was to be deleted."""

    root: Path

    def create_repo(self, repo_id: str, **_: Any) -> None:
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def file_exists(self, repo_id: str, name: str) -> bool:
        return (self.root / repo_id / name).is_file()

    def hf_hub_download(self, repo_id: str, name: str, local_dir: Path) -> None:
        shutil.copy(self.root / repo_id / name, local_dir)

    def upload_folder(
        self, repo_id: str, folder_path: str, delete_patterns: list[str], **_: Any
    ) -> Any:
        for name in delete_patterns:
            (self.root / repo_id / name).unlink(missing_ok=True)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return type("Commit", (), {"commit_url": ""})


def test_a_rule_goes_to_the_hub_and_leaves_it(
    bayes: BayesianPeft, ruled: BayesianPeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("posthoc_bhpeft.rebuild.HfApi", lambda token=None: hub)
    folder = hub.root / "me/mood"
    monkeypatch.setattr("posthoc_bhpeft.rebuild.snapshot_download", lambda _: str(folder))
    ruled.push_to_hub("me/mood")
    card = (folder / "README.md").read_text()
    assert f"- Review, by `predict(batch, review=True)`: {PROMISE}" in card
    after = BayesianPeft.from_pretrained("me/mood", model=bayes.model)
    assert after.review_rule == ruled.review_rule
    bayes.push_to_hub("me/mood")
    assert BayesianPeft.from_pretrained("me/mood", model=bayes.model).review_rule is None
