"""A label at every word: which positions are judged, their variances, and what they ask for."""

from __future__ import annotations

import re

import pytest
import torch

from posthoc_bhpeft import (
    MAP,
    BayesianPeft,
    FixedPrecision,
    LeaveOneOut,
    LogOdds,
    MonteCarlo,
    Tangent,
    Tempered,
    Tokens,
    VisiblePrecision,
    bayesianize,
)
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.predictive.positions import some_positions
from posthoc_bhpeft.predictive.spectrum import POSITIONS, CovarianceSpectrum, covariance_spectra
from posthoc_bhpeft.selection import PriorChoice
from posthoc_bhpeft.selection.adjustment import Adjustment
from posthoc_bhpeft.selection.hidden import NARROWER, WARMER, HiddenRows, HiddenTokens
from posthoc_bhpeft.selection.positions import MOST_CLASSES, adjusted, asked, tags_words
from tests.hybrid.families import FIRST_WORD, VOCABULARY
from tests.models import seeded
from tests.oracles import per_sample
from tests.selection.test_hidden import level, noise
from tests.tasks.tiny import hybrid, language_model, lora, tuned

IGNORED = -100


def tagger(config=None, scale=1.0):
    """A token classifier of three tags; its head's own weights times a scale."""
    model = tuned("AutoModelForTokenClassification", "bert", config or hybrid("TOKEN_CLS"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name and parameter.requires_grad:
                parameter.mul_(scale)
    return model.eval()


def texts(n=6, length=9, seed=0):
    """Texts of decreasing length, each third word and both ends without a label."""
    ids = torch.randint(FIRST_WORD, VOCABULARY, (n, length), generator=seeded(seed))
    lengths = torch.tensor([length - row % 4 for row in range(n)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    labels = torch.randint(0, 2, ids.shape, generator=seeded(seed + 1))
    labels[:, ::3] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.where(mask > 0, IGNORED)}


def own_answers(model, batch):
    """The same texts, each word labelled as the model would label it."""
    with torch.no_grad():
        answers = model(**{n: v for n, v in batch.items() if n != "labels"}).logits.argmax(-1)
    return {**batch, "labels": answers.where(batch["labels"] != IGNORED, IGNORED)}


def spectra_of(model, batches, likelihood=None, link=None):
    likelihood = likelihood or Tokens()
    bayes = bayesianize(
        model, batches, likelihood=likelihood, prior=FixedPrecision(2.0), progress=False
    )
    shown = HiddenTokens(batches, 0.5)
    bases = bayes.posterior.bases
    found = covariance_spectra(
        model, bayes.blocks, bases, likelihood, shown, link=link or LogOdds()
    )
    return shown, bases, list(found)


# Which positions


def test_positions_are_drawn_from_those_that_count():
    counted = torch.rand(200, 12, generator=seeded(0)) < 0.5
    counted[0], counted[1] = False, torch.arange(12) == 7
    chosen, keep = some_positions(counted, 4, seeded(1))
    assert chosen.shape == keep.shape == (200, 4)
    assert torch.equal(keep.sum(1), counted.sum(1).clamp_max(4))
    for row in range(200):
        own = chosen[row][keep[row]].tolist()
        assert len({*own}) == len(own)
        assert all(counted[row, place] for place in own)
    assert chosen[1][keep[1]].tolist() == [7]
    # Each of twelve is as likely as another.
    shares = torch.zeros(12).index_add_(0, chosen[keep], torch.ones(int(keep.sum())))
    assert shares.max() < 1.6 * shares.min()


def test_where_texts_are_short_there_are_fewer():
    counted = torch.tensor([[True, False, True], [False, False, True]])
    chosen, keep = some_positions(counted, 4, seeded(0))
    assert keep.tolist() == [[True, True], [True, False]]
    assert sorted(chosen[0].tolist()) == [0, 2]
    assert int(chosen[1, 0]) == 2


# What is known of them


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("link", [LogOdds(), MonteCarlo()], ids=["one direction", "all"])
def test_variances_are_those_of_autograd_at_words_that_are_not_hidden(shift, link):
    """Every judged word is found among the visible ones, with its label and its own variance."""
    model = language_model(config=lora()) if shift else tagger(lora("TOKEN_CLS", "query", "value"))
    batch = texts(4)
    shown, bases, [spectrum] = spectra_of(model, [batch], Tokens(shift=shift), link)
    (inputs, labels), *_ = shown
    with torch.enable_grad():
        logits = model(**inputs).logits
    visible = inputs["attention_mask"].bool()
    aligned = Tokens(shift=shift).aligned(labels)
    places = {(n, t): logits[n, t] for n, t in ((aligned != IGNORED) & visible).nonzero().tolist()}
    of_text = [sum(n == row for n, _ in places) for row in range(4)]
    assert spectrum.texts.bincount(minlength=4).tolist() == [min(POSITIONS, k) for k in of_text]
    assert 0 < len(spectrum.labels) < int((aligned != IGNORED).sum())
    covariance, blocks = spectrum.at(3.0), discover(model)
    for row, (n, label) in enumerate(zip(spectrum.texts, spectrum.labels, strict=True)):
        own, said = [place for place in places if place[0] == int(n)], spectrum.outputs[row]
        near = min(own, key=lambda p: float((places[p].detach() - said).abs().max()))
        assert torch.allclose(places[near], said)
        assert int(aligned[near]) == int(label)
        if row % 4 == 0:
            a = LogOdds.gradient(spectrum.outputs[row][None])[0]
            exact = variance(model, blocks, bases, (places[near] @ a)[None], 3.0)
            assert float(a @ covariance[row] @ a) == pytest.approx(exact, rel=0.02)


def variance(model, blocks, bases, scalar, precision):
    """`g^T (H + d I)^-1 g` of a scalar, block by block."""
    total = 0.0
    for name, gradient in per_sample(model, blocks, scalar).items():
        own = bases[name].project(gradient)[0].square()
        total += float((own.flatten() / (bases[name].eigenvalues.flatten() + precision)).sum())
    return total


def test_a_text_counts_once():
    one = torch.ones(1)
    spectrum = CovarianceSpectrum(one, one, one, one, one, torch.tensor([0, 0, 2, 2, 2]))
    values = torch.tensor([[1.0, 3.0, 1.0, 2.0, 6.0], [0.0, 0.0, 0.0, 0.0, 3.0]])
    assert spectrum.by_text(values).tolist() == [[2.0, 3.0], [0.0, 1.0]]
    rows = CovarianceSpectrum(one, one, one, one, one)
    assert rows.by_text(values) is values


def test_losses_of_a_text_are_the_mean_over_its_words():
    model = tagger()
    _, _, [spectrum] = spectra_of(model, [texts(5)])
    rows = HiddenRows.of(Tokens(), [spectrum], 4.0, 0.5)
    assert rows.softer.shape[-1] == rows.surer.shape[-1] == len(spectrum.texts.unique())
    p = Tempered(WARMER[2]).softmax(spectrum.outputs, spectrum.at(4.0))
    nll = -p.gather(1, spectrum.labels[:, None]).log().squeeze(1)
    for place, text in enumerate(spectrum.texts.unique()):
        assert float(rows.softer[0, 2, place]) == pytest.approx(
            float(nll[spectrum.texts == text].mean())
        )


# What they ask for


def test_first_softer_then_surer_then_narrower():
    rows = level()
    rows.surer[2, 0] -= 0.01
    found = asked(rows, 0.0)
    assert (found.width, found.temperature) == (NARROWER[2], 1.0)
    rows.surer[1, 3] -= 0.2
    found = asked(rows, 0.0)
    assert (found.width, found.temperature < 1) == (NARROWER[1], True)
    assert asked(rows, 1.0).width == NARROWER[2]
    rows.softer[0, 4] -= 0.1
    assert asked(rows, 0.0).temperature == WARMER[4]


def test_surer_predictions_need_two_standard_errors():
    rows = level()
    rows.surer[0, 6] -= 0.5
    rows.surer[0, 0] = 0.5 + noise(0.2) + 0.019
    assert asked(rows, 0.0).temperature == 1
    rows.surer[0, 0] += 0.002
    assert asked(rows, 0.0).temperature < 1


def test_a_narrower_posterior_needs_two_standard_errors_and_is_then_the_best():
    rows = level()
    rows.surer[3, 0] = 0.5
    rows.surer[1, 0] = 0.5 + noise(0.2) + 0.001
    rows.surer[0, 0] = 0.5 + noise(0.2) + 0.019
    assert not asked(rows, 0.0).needed
    rows.surer[0, 0] += 0.002
    found = asked(rows, 1.0)
    assert (found.width, found.temperature) == (NARROWER[3], 1.0)


def test_the_choice_in_words():
    choice = PriorChoice({"a": 2.0, "b": 2.0}, "Because.")
    found = adjusted(choice, Adjustment.told("9 rows", 4.0, 0.5, 1.0, 0.9))
    assert found.precision == {"a": 8.0, "b": 8.0}
    assert found.link == Tempered(0.5)
    assert found.reason == (
        "Because. 4 times that precision and temperature 0.50: 9 rows ask for surer predictions "
        "(NLL 1.000 without, 0.900 so)."
    )
    narrow = adjusted(choice, Adjustment.told("9 rows", 4.0, 1.0, 1.0, 0.9))
    assert narrow.link is None
    assert "ask for surer predictions" in narrow.reason
    same = adjusted(choice, Adjustment.told("9 rows", 1.0, 1.0, 1.0, 1.0))
    assert same.precision == choice.precision
    assert same.reason.startswith("Because. That precision and temperature 1.00: 9 rows ask for no")


def test_tags_are_judged_and_vocabularies_are_not():
    assert tags_words(Tokens(), MOST_CLASSES)
    assert not tags_words(Tokens(), MOST_CLASSES + 1)
    assert not tags_words(Tokens(shift=True), 5)


# In the rule


def fit(model, batches, prior=None, likelihood=None):
    prior, likelihood = prior or LeaveOneOut(), likelihood or Tokens()
    return bayesianize(model, batches, likelihood=likelihood, prior=prior, progress=False)


def test_a_tagger_that_is_too_unsure_is_made_surer_and_stays_so_when_it_is_saved(tmp_path):
    # Only the head has learnt anything: hiding other words changes nothing.
    model = tagger(lora("TOKEN_CLS", "query"), 0.3)
    batches = [own_answers(model, texts(60, seed=s)) for s in (0, 5)]
    bayes = fit(model, batches)
    found = bayes.predictive
    assert isinstance(found, Tangent)
    assert found.temperature < 0.9
    assert re.search(r"mean training NLL [\d.]+ nats a text\.", bayes.explain())
    assert "Here NLL is in nats a word." in bayes.explain()
    assert bayes.explain().count("effective parameters") == 1
    # The texts without a labelled word in sight tell nothing.
    told = f"temperature {found.temperature:.2f}: 1[12][0-9] training rows with 50% of their tokens"
    assert re.search(told, bayes.reason)
    ours, plain = bayes.predict(batches[0]).at_positions(), bayes.predict(batches[0], MAP())
    plain = plain.at_positions()
    assert torch.equal(ours.predicted, plain.predicted)
    assert torch.equal(ours.logits, plain.logits)
    assert nll(ours) < nll(plain)
    few = fit(model, batches[:1])
    assert few.predictive == Tangent()
    bayes.save_pretrained(tmp_path / "tagger")
    loaded = BayesianPeft.from_pretrained(tmp_path / "tagger")
    assert loaded.predictive == found
    again = loaded.predict(batches[0]).at_positions()
    assert torch.allclose(again.probabilities.double(), ours.probabilities, atol=1e-5)


def nll(said):
    return float(-said.probabilities.gather(1, said.labels[:, None]).log().mean())


def test_a_tagger_that_knows_its_texts_by_heart_is_softened():
    model = tagger(scale=60.0)
    batches = [own_answers(model, texts(24))]
    bayes = fit(model, batches)
    assert "tokens hidden ask for less sure predictions" in bayes.reason
    ours, plain = (bayes.predict(batches[0], way).at_positions() for way in (None, MAP()))
    assert torch.equal(ours.predicted, plain.predicted)
    assert ours.probabilities.amax(-1).mean() < plain.probabilities.amax(-1).mean()


def bare(batch):
    return {name: column for name, column in batch.items() if name != "attention_mask"}


def ends_alone(batch):
    """Labels at second words of texts of three, which are always hidden by a share of nearly 1."""
    labels = torch.full_like(batch["labels"][:, :3], IGNORED)
    labels[:, 1] = 1
    return {"input_ids": batch["input_ids"][:, :3], "labels": labels,
            "attention_mask": torch.ones_like(labels)}  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "prior"),
    [
        (bare, LeaveOneOut()),
        (lambda batch: batch, LeaveOneOut(hidden=0)),
        (ends_alone, LeaveOneOut(hidden=0.9999)),
    ],
    ids=["no mask", "nothing hidden", "nothing visible"],
)
def test_what_cannot_be_judged_is_as_wide_as_the_evidence_says(shown, prior):
    model, batches = tagger(), [shown(texts())]
    default, visible = fit(model, batches, prior), fit(model, batches, VisiblePrecision())
    assert default.reason == visible.reason
    assert default.posterior.prior.precision == visible.posterior.prior.precision
    assert default.predictive == Tangent()


def test_a_quarter_of_the_rows_are_read_as_each_has_several_words():
    assert LeaveOneOut().read_rows(Tokens()) * POSITIONS == LeaveOneOut().max_rows
