"""Rows with tokens hidden: what is hidden, their losses by brute force, and what they ask for."""

import math

import pytest
import torch

from posthoc_bhpeft import (
    MAP,
    FixedPrecision,
    LeaveOneOut,
    Linearized,
    LogOdds,
    Tempered,
    bayesianize,
)
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical
from posthoc_bhpeft.predictive.spectrum import covariance_spectra
from posthoc_bhpeft.selection.hidden import (
    COLDER,
    NARROWER,
    WARMER,
    WIDER,
    HiddenRows,
    HiddenTokens,
    hide,
    share_hidden,
    with_hidden_tokens,
)
from posthoc_bhpeft.shards import Shard
from tests.models import mlp, pairs, seeded
from tests.tuned import tuned

LEFT = [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
RIGHT = [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


# What is hidden


@pytest.mark.parametrize("mask", [LEFT, RIGHT, [LEFT, RIGHT]])
def test_the_first_and_the_last_token_stay_and_padding_is_left_alone(mask):
    mask = torch.tensor(mask)
    hidden = hide(mask, 0.999, seeded(0))
    assert hidden.dtype == mask.dtype
    for before, after in zip(mask.reshape(-1, 6), hidden.reshape(-1, 6), strict=True):
        ones = before.nonzero().flatten()
        kept = {int(ones[0]), int(ones[-1])}
        assert set(after.nonzero().flatten().tolist()) == kept


def test_a_share_of_the_others_is_hidden():
    mask = torch.ones(50, 202, dtype=torch.long)
    hidden = hide(mask, 0.3, seeded(0))
    share = 1 - hidden[:, 1:-1].double().mean()
    assert float(share) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 10_000))


def test_a_text_of_padding_alone_stays_so():
    assert not bool(hide(torch.zeros(2, 5, dtype=torch.long), 0.5, seeded(0)).any())


def test_the_share_falls_with_the_number_of_rows():
    assert share_hidden(0.5, 100) == 0.5
    assert share_hidden(0.5, 20_000) == pytest.approx(0.1)


def batches_of(mask=None):
    mask = torch.tensor([[1] * 12, [1] * 9 + [0] * 3]) if mask is None else mask
    ids = torch.randint(5, 60, mask.shape, generator=seeded(3))
    first = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2])}
    return [first, {**first, "labels": torch.tensor([1, -100])}]


def test_only_the_mask_changes_and_each_time_alike():
    batches = batches_of()
    hidden = HiddenTokens(batches, 0.5)
    assert len(hidden) == 2
    for (inputs, labels), batch in zip(hidden, batches, strict=True):
        assert torch.equal(labels, batch["labels"])
        assert torch.equal(inputs["input_ids"], batch["input_ids"])
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert int(inputs["attention_mask"].sum()) < int(batch["attention_mask"].sum())
    for one, again in zip(hidden, hidden, strict=True):
        assert torch.equal(one[0]["attention_mask"], again[0]["attention_mask"])
    assert int(batches[0]["attention_mask"].sum()) == 21


def test_without_a_mask_of_integers_nothing_can_be_hidden():
    masked = batches_of()
    assert isinstance(with_hidden_tokens(masked, 0.5), HiddenTokens)
    assert with_hidden_tokens(pairs((6, 3), 3), 0.5) is None
    assert with_hidden_tokens([], 0.5) is None
    assert with_hidden_tokens([*masked, *pairs((6, 3), 3)], 0.5) is None
    additive = [{**one, "attention_mask": one["attention_mask"].float()} for one in masked]
    assert with_hidden_tokens(additive, 0.5) is None
    bare = [{k: v for k, v in one.items() if k != "attention_mask"} for one in masked]
    assert with_hidden_tokens(bare, 0.5) is None


def test_a_process_part_stays_a_part_even_if_it_is_empty():
    part = with_hidden_tokens(Shard(batches_of()), 0.5)
    assert isinstance(part, Shard)
    assert isinstance(part.batches, HiddenTokens)
    assert isinstance(with_hidden_tokens(Shard([]), 0.5), Shard)


# What they ask for


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_losses_are_those_of_predictions_at_each_candidate(likelihood):
    """Against `predict` under each precision and temperature; two classes need no direction."""
    batches = batches_of()
    if isinstance(likelihood, Bernoulli):
        answers = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        batches = [{**one, "labels": answers} for one in batches]
    else:
        batches = [{**one, "labels": one["labels"].clamp_max(1)} for one in batches]
    model = tuned(num_labels=2)
    bayes = bayesianize(
        model, batches, likelihood=likelihood, prior=FixedPrecision(1.0), progress=False
    )
    hidden = HiddenTokens(batches, 0.5)
    spectra = covariance_spectra(
        model, bayes.blocks, bayes.posterior.bases, likelihood, hidden, link=LogOdds()
    )
    rows = HiddenRows.of(likelihood, spectra, 3.0, 0.5)
    for losses, widths, temperatures in (
        (rows.softer, WIDER, WARMER),
        (rows.surer, NARROWER, COLDER),
    ):
        for w, t in ((0, 0), (3, 4), (len(widths) - 1, 10)):
            prior, link = FixedPrecision(3.0 * widths[w]), Tempered(temperatures[t])
            at = bayesianize(model, batches, likelihood=likelihood, prior=prior, progress=False)
            said = at.predict_loader(hidden, Linearized(link), progress=False)
            assert torch.allclose(losses[w, t], nll_of(said, likelihood), rtol=2e-3)


def nll_of(said, likelihood):
    p, labels = said.probabilities.double(), said.labels
    if isinstance(likelihood, Bernoulli):
        return -(labels * p.log() + (1 - labels) * (1 - p).log()).sum(1)
    kept = labels != -100
    return -p[kept].gather(1, labels[kept][:, None]).log().squeeze(1)


def level(n=400):
    """`HiddenRows` of which no row prefers any candidate."""
    softer = torch.ones(len(WIDER), len(WARMER), n).double()
    return HiddenRows(softer, torch.ones(len(NARROWER), len(COLDER), n).double(), 0.5)


def noise(deviation, n=400):
    """Of mean 0."""
    drawn = torch.randn(n, generator=seeded(0)).double()
    return deviation * (drawn - drawn.mean()) / drawn.std()


def test_the_width_first_and_the_temperature_at_that_width():
    rows = level()
    rows.softer[4, 0], rows.softer[4, 3], rows.softer[2, 7] = 0.8, 0.7, 0.1
    found = rows.softening()
    assert (found.width, found.temperature) == (WIDER[4], WARMER[3])
    assert (found.before, found.after) == (pytest.approx(1.0), pytest.approx(0.7))
    assert found.needed


def test_what_is_within_a_standard_error_changes_nothing():
    rows = level()
    # A deviation of 0.2 over 400 rows: the standard error is 0.01.
    rows.softer[0, 0] += noise(0.2) + 0.0099
    assert not rows.softening().needed
    rows.softer[0, 0] += 0.0002
    assert rows.softening().needed


def test_a_temperature_below_one_and_its_precision_are_chosen_together():
    rows = level()
    rows.surer[0, 4], rows.surer[3, 7], rows.surer[3, 9] = 0.9, 0.8, 0.7
    found = rows.sharpening(0.0, errors=1)
    assert (found.width, found.temperature) == (NARROWER[3], COLDER[9])
    assert (found.before, found.after) == (pytest.approx(1.0), pytest.approx(0.7))
    assert found.needed


@pytest.mark.parametrize("errors", [1, 2])
def test_the_temperature_returns_to_one_as_far_as_standard_errors_allow(errors):
    rows = level()
    rows.surer[2, 8] = 0.5
    rows.surer[2, 5] = 0.5 + noise(0.2) + 0.01 * errors - 1e-4
    rows.surer[2, 3] = 0.5 + noise(0.2) + 0.01 * errors + 1e-4
    found = rows.sharpening(0.0, errors=errors)
    assert (found.width, found.temperature) == (NARROWER[2], COLDER[5])


def test_the_precision_stays_where_the_temperature_does():
    rows = level()
    rows.surer[2, 8] -= 0.001
    rows.surer[2, 0] += noise(0.2)
    found = rows.sharpening(0.0, errors=1)
    assert (found.width, found.temperature) == (1.0, 1.0)
    assert not found.needed
    assert found.why == (
        "400 training rows with 50% of their tokens hidden ask for nothing else (NLL 1.000)."
    )


def test_no_temperature_is_lower_than_the_coldest():
    rows = level()
    rows.surer[1] -= torch.linspace(0, 1, len(COLDER)).double()[:, None]
    assert rows.sharpening(0.0, errors=1).temperature == COLDER[-1]
    for k in (6, 7):
        assert rows.sharpening(COLDER[k], errors=1).temperature == COLDER[k]
        assert rows.sharpening(COLDER[k] - 1e-9, errors=1).temperature == COLDER[k]
    assert not rows.sharpening(1.7, errors=1).needed


def test_in_words():
    rows = level(320)
    rows.softer[:, 4] -= 0.25
    rows.surer[0, 2] -= 0.5
    assert rows.softening().describe() == (
        "temperature 1.49: 320 training rows with 50% of their tokens hidden ask for less sure "
        "predictions (NLL 1.000 without, 0.750 so)."
    )
    assert rows.sharpening(0.0, errors=1).describe() == (
        "temperature 0.74: 320 training rows with 50% of their tokens hidden ask for surer "
        "predictions (NLL 1.000 without, 0.500 so)."
    )


# In the rule


def memorised(n=24, classes=2):
    """A model whose answers, all of them far too sure, are right on its training rows alone."""
    model = tuned(num_labels=classes)
    ids = torch.randint(5, 60, (n, 12), generator=seeded(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name and parameter.requires_grad:
                parameter.mul_(60.0)
        labels = model(**batch).logits.argmax(-1)
    return model, [{**batch, "labels": labels}]


def test_a_network_that_knows_its_rows_by_heart_is_softened_and_keeps_its_answers():
    model, batches = memorised()
    plain = bayesianize(model, batches, prior=LeaveOneOut(hidden=0), progress=False)
    bayes = bayesianize(model, batches, progress=False)
    assert "tokens hidden ask for less sure predictions" in bayes.reason
    assert "hidden" not in plain.reason
    before, after = (b.predict_loader(batches, progress=False) for b in (plain, bayes))
    assert torch.equal(
        before.predicted, bayes.predict_loader(batches, MAP(), progress=False).predicted
    )
    assert torch.equal(before.predicted, after.predicted)
    assert after.probabilities.amax(-1).mean() < before.probabilities.amax(-1).mean()


def test_batches_without_a_mask_are_judged_by_leaving_out_alone():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    default = bayesianize(model, loader, progress=False)
    without = bayesianize(model, loader, prior=LeaveOneOut(hidden=0), progress=False)
    assert default.reason == without.reason
    assert default.predictive == without.predictive


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_from_zero_to_below_one(share):
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        LeaveOneOut(hidden=share)
