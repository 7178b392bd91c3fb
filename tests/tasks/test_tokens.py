"""Labels at every position: likelihood, curvature, default prior, predictions, saving."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from transformers import DataCollatorForSeq2Seq

from posthoc_bhpeft import (
    MAP,
    BayesianPeft,
    Contrasts,
    DenseGGN,
    Exact,
    FixedPrecision,
    HeldOut,
    Linearized,
    LogOdds,
    MatchedPrecision,
    RandomSigns,
    Sampled,
    Tangent,
    Tokens,
    VisiblePrecision,
    bayesianize,
)
from posthoc_bhpeft.audit import Predictions
from posthoc_bhpeft.audit.predicting import predictions_of
from posthoc_bhpeft.batches import split_batch
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import fit_curvature
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError
from posthoc_bhpeft.likelihood import Categorical, RowLikelihood
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.sampled import drawn_parameters
from tests.hybrid.families import FIRST_WORD
from tests.models import mlp, seeded
from tests.oracles import per_sample, relative_error
from tests.tasks.tiny import language_model, lora, tuned
from tests.tasks.words import tokenizer

IGNORED = -100


def logits_and_labels(shift=False):
    """Three texts of four positions and five classes; the second has no label at all."""
    outputs = 2 * torch.randn(3, 4, 5, generator=seeded(), dtype=torch.float64)
    labels = torch.randint(0, 5, (3, 4), generator=seeded(1))
    labels[0, 2:], labels[1], labels[2, 1] = IGNORED, IGNORED, IGNORED
    return Tokens(shift), outputs, labels


def judged(likelihood, labels):
    """Pairs (output position, label) of each row, by a loop."""
    ahead = int(likelihood.shift)
    n_positions = labels.shape[1]
    return [
        [
            (t, int(row[t + ahead]))
            for t in range(n_positions)
            if t + ahead < n_positions and row[t + ahead] != IGNORED
        ]
        for row in labels
    ]


@pytest.mark.parametrize("shift", [False, True])
def test_nll_is_a_sum_over_labelled_positions(shift):
    likelihood, outputs, labels = logits_and_labels(shift)
    expected = [
        -sum(outputs[n, t].log_softmax(-1)[y] for t, y in pairs)
        for n, pairs in enumerate(judged(likelihood, labels))
    ]
    assert likelihood.nll(outputs, labels).tolist() == pytest.approx([float(e) for e in expected])
    assert float(likelihood.nll(outputs, labels)[1]) == 0


@pytest.mark.parametrize("shift", [False, True])
def test_output_gradient_is_that_of_autograd(shift):
    likelihood, outputs, labels = logits_and_labels(shift)
    outputs.requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.nll(outputs, labels).sum(), outputs)
    assert torch.allclose(likelihood.output_gradient(outputs.detach(), labels), expected)


def exact_hessians(likelihood, outputs, labels):
    """`(N, T C, T C)` by autograd."""
    return torch.stack(
        [
            torch.autograd.functional.hessian(
                lambda f, y=y: likelihood.nll(f.reshape(1, *outputs.shape[1:]), y[None])[0],
                row.flatten(),
            )
            for row, y in zip(outputs, labels, strict=True)
        ]
    )


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("directions", [Exact(), Contrasts()], ids=repr)
def test_exact_directions_sum_to_the_hessian_of_the_text(directions, shift):
    likelihood, outputs, labels = logits_and_labels(shift)
    drawn = directions.draw(likelihood, outputs, labels, None)
    longest = max(map(len, judged(likelihood, labels)))
    assert len(drawn) == longest * (5 if directions == Exact() else 4)
    flat = drawn.flatten(2)
    total = torch.einsum("kni,knj->nij", flat, flat)
    assert torch.allclose(total, exact_hessians(likelihood, outputs, labels))


@pytest.mark.parametrize("shift", [False, True])
def test_random_signs_have_the_hessian_of_the_text_as_their_mean(shift):
    likelihood, outputs, labels = logits_and_labels(shift)
    n = 4000
    flat = RandomSigns(n).draw(likelihood, outputs, labels, seeded()).flatten(2) * n**0.5
    products = torch.einsum("kni,knj->knij", flat, flat)
    error = (products.mean(0) - exact_hessians(likelihood, outputs, labels)).abs()
    standard_error = products.std(0) / n**0.5
    assert bool((error < 5 * standard_error + 1e-12).all())
    assert bool((standard_error > 0).any())


def test_signs_of_a_vocabulary_are_those_of_its_root():
    outputs = torch.randn(6, 7, generator=seeded(), dtype=torch.float64)
    likelihood = Categorical()
    by_root = RowLikelihood.signed_root(likelihood, outputs, outputs, 3, seeded(1))
    assert torch.allclose(likelihood.signed_root(outputs, outputs, 3, seeded(1)), by_root)


def jacobians(model, batch):
    """Logits `(N, T, C)`, and `(N, T C, P)` by block name, one backward pass a logit."""
    inputs, _ = split_batch(batch)
    with torch.enable_grad():
        result = model(inputs) if isinstance(inputs, torch.Tensor) else model(**inputs)
        logits = getattr(result, "logits", result)
        found = per_sample(model, discover(model), logits.flatten())
    by_row = {name: one.flatten(1).unflatten(0, (len(logits), -1)) for name, one in found.items()}
    return logits.detach(), by_row


def exact_ggn(model, batches, likelihood):
    """The exact GGN `(P, P)` of every block."""
    total = {}
    for batch in batches:
        logits, found = jacobians(model, batch)
        hessians = exact_hessians(likelihood, logits, split_batch(batch)[1])
        for name, rows in found.items():
            total[name] = total.get(name, 0) + torch.einsum("nip,nij,njq->pq", rows, hessians, rows)
    return total


def tagger(n_labels=3):
    """A token classifier with LoRA."""
    config = lora("TOKEN_CLS", "query", "value")
    return tuned("AutoModelForTokenClassification", "bert", config, num_labels=n_labels)


def causal():
    """A causal language model with a vocabulary of eight."""
    return language_model("llama", lora(), vocab_size=8, eos_token_id=2)


def translator(family="t5", targets=("q", "v")):
    """An encoder-decoder."""
    return tuned("AutoModelForSeq2SeqLM", family, lora("SEQ_2_SEQ_LM", *targets), vocab_size=8)


def texts(n_words, lengths, seed=0):
    """Token ids padded on the right, with their mask."""
    longest = max(lengths)
    ids = torch.randint(FIRST_WORD, n_words, (len(lengths), longest), generator=seeded(seed))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def tagged(lengths=(4, 2), n_labels=3, seed=0):
    batch = texts(20, lengths, seed)
    labels = torch.randint(0, n_labels, batch["input_ids"].shape, generator=seeded(seed + 1))
    return {**batch, "labels": labels.where(batch["attention_mask"] == 1, IGNORED)}


def continued(lengths=(4, 2), seed=0):
    batch = texts(8, lengths, seed)
    return {**batch, "labels": batch["input_ids"].where(batch["attention_mask"] == 1, IGNORED)}


def translated(model, lengths=(3, 2), seed=0):
    """As `DataCollatorForSeq2Seq(tokenizer, model=model)` makes it."""
    batch = texts(8, (4, 3), seed)
    labels = continued(lengths, seed + 1)["labels"]
    decoder = model.get_base_model().prepare_decoder_input_ids_from_labels(labels)
    return {**batch, "labels": labels, "decoder_input_ids": decoder}


CASES = {
    "token classification": lambda: (tagger(), [tagged(), tagged((3,), seed=5)], Tokens(), 3),
    "causal": lambda: (causal(), [continued(), continued((3,), seed=5)], Tokens(True), 8),
    "encoder-decoder": lambda: (lambda m: (m, [translated(m)], Tokens(), 8))(translator()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_curvature_of_a_model_is_the_exact_ggn_over_ragged_batches(case):
    model, batches, likelihood, n_classes = CASES[case]()
    fitted = fit_curvature(
        model, discover(model), batches, likelihood, DenseGGN(directions=Contrasts())
    )
    for name, exact in exact_ggn(model, batches, likelihood).items():
        # Rotary embeddings and some norms compute in float32.
        assert relative_error(fitted.operators[name].dense(), exact) < 1e-6, name
    assert fitted.n_rows == sum(len(batch["labels"]) for batch in batches)
    assert fitted.n_outputs == n_classes


@pytest.mark.parametrize("case", CASES)
def test_the_log_likelihood_is_the_models_own_loss(case):
    model, batches, likelihood, _ = CASES[case]()
    fitted = fit_curvature(model, discover(model), batches, likelihood, DenseGGN())
    expected = 0.0
    for batch in batches:
        with torch.no_grad():
            loss = model(**batch).loss
        expected -= float(loss) * int(likelihood.counted(batch["labels"]).sum())
    assert fitted.log_likelihood == pytest.approx(expected, rel=1e-6)


def test_random_signs_give_an_unbiased_curvature_over_positions():
    model, likelihood, n = mlp(2, 3), Tokens(), 250
    inputs = torch.randn(2, 3, 2, generator=seeded(), dtype=torch.float64)
    batch = (inputs, torch.tensor([[0, 1, IGNORED], [2, 2, 1]]))
    blocks, generator = discover(model), seeded()
    estimator = DenseGGN(directions=RandomSigns())
    draws = [
        fit_curvature(model, blocks, [batch], likelihood, estimator, generator=generator).operators
        for _ in range(n)
    ]
    for name, exact in exact_ggn(model, [batch], likelihood).items():
        each = torch.stack([draw[name].dense() for draw in draws])
        standard_error = each.std(0) / n**0.5
        assert bool(((each.mean(0) - exact).abs() < 5 * standard_error + 1e-12).all()), name


def test_padding_without_labels_changes_nothing():
    model, plain = tagger(), tagged((4, 3))
    wide = {name: F.pad(column, (0, 3), value=0) for name, column in plain.items()}
    wide["labels"] = F.pad(plain["labels"], (0, 3), value=IGNORED)
    blocks, estimator = discover(model), DenseGGN(directions=Contrasts())
    one, other = (fit_curvature(model, blocks, [b], Tokens(), estimator) for b in (plain, wide))
    assert other.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-9)
    for name, operator in one.operators.items():
        assert torch.allclose(operator.dense(), other.operators[name].dense(), atol=1e-9), name


def fitted(case, **settings):
    model, batches, likelihood, _ = CASES[case]()
    bayes = bayesianize(model, batches, likelihood=likelihood, progress=False, **settings)
    return bayes, batches


@pytest.mark.parametrize("case", CASES)
def test_defaults_for_tokens_say_why(case):
    """Next tokens take the visible precision; tags of words begin with it."""
    bayes, _ = fitted(case)
    model, batches, likelihood, _ = CASES[case]()
    asked = bayesianize(
        model, batches, likelihood=likelihood, prior=VisiblePrecision(), progress=False
    )
    assert bayes.reason.startswith(asked.reason)
    assert isinstance(bayes.predictive, Tangent)
    if case == "causal":
        assert bayes.reason == asked.reason
        assert bayes.predictive == asked.predictive == Tangent()
        assert asked.posterior.prior.precision == bayes.posterior.prior.precision
    else:
        assert "training rows with 50% of their tokens hidden" in bayes.reason


def test_matched_precision_falls_back_too():
    assert "can see" in fitted("causal", prior=MatchedPrecision())[0].reason


@pytest.mark.parametrize("case", CASES)
def test_sampled_predictions_are_those_of_a_loop_over_draws_and_positions(case):
    bayes, (batch, *_) = fitted(case, prior=FixedPrecision(20.0), predictive=Sampled(3, seed=4))
    prediction = bayes.predict(batch)
    inputs = {name: column for name, column in batch.items() if name != "labels"}
    draws = [
        torch.func.functional_call(bayes.model, parameters, (), inputs).logits.detach().softmax(-1)
        for parameters in drawn_parameters(bayes.model, bayes.posterior, 3, 4)
    ]
    for n, t in ((0, 0), (0, 2), (1, 1)):
        each = [draw[n, t] for draw in draws]
        mean = sum(each) / 3
        total = -(mean * mean.log()).sum()
        aleatoric = -sum((p * p.log()).sum() for p in each) / 3
        assert torch.allclose(prediction.probabilities[n, t], mean)
        assert torch.allclose(prediction.total[n, t], total)
        assert torch.allclose(prediction.epistemic[n, t], total - aleatoric)
    assert torch.equal(prediction.labels, bayes.likelihood.aligned(batch["labels"]))


def test_a_point_prediction_has_a_mask_and_no_epistemic_part():
    bayes, (batch, *_) = fitted("token classification", predictive=MAP())
    prediction = bayes.predict(batch)
    assert torch.equal(prediction.mask, batch["attention_mask"] == 1)
    assert not bool(prediction.epistemic.any())


def test_the_mask_of_an_encoder_decoder_is_that_of_what_its_decoder_reads():
    model = translator()
    bayes = bayesianize(model, [translated(model)], likelihood=Tokens(), progress=False)
    prediction = bayes.predict(translated(model, lengths=(3, 2)))
    assert prediction.mask.tolist() == [[True, True, True], [True, True, True]]
    prediction = bayes.predict(translated(model, lengths=(4, 2)))
    # The decoder reads its start, then all labels but the last.
    assert prediction.mask.tolist() == [[True] * 4, [True, True, True, False]]


@pytest.mark.parametrize(
    ("family", "targets"), [("t5", ("q", "v")), ("bart", ("q_proj", "v_proj"))]
)
def test_an_encoder_decoder_reads_batches_as_transformers_makes_them(family, targets):
    words, config = tokenizer(), lora("SEQ_2_SEQ_LM", *targets)
    model = tuned("AutoModelForSeq2SeqLM", family, config, vocab_size=len(words))
    rows = [
        {**words(source), "labels": words(target)["input_ids"]}
        for source, target in (("which is hot", "fire sun"), ("cold", "ice"))
    ]
    batch = dict(DataCollatorForSeq2Seq(words, model=model)(rows))
    bayes = bayesianize(model, [batch], likelihood=Tokens(), progress=False)
    prediction = bayes.predict(batch)
    assert prediction.probabilities.shape == (2, 2, len(words))
    assert len(prediction.at_positions()) == 3
    assert bool((prediction.at_positions().epistemic > 0).all())
    point = bayes.predict(batch, MAP()).at_positions()
    nll = -point.probabilities[torch.arange(3), point.labels].log().mean()
    with torch.no_grad():
        assert float(nll) == pytest.approx(float(model(**batch).loss), rel=1e-6)


def test_ragged_batches_are_joined_and_taken_apart_by_position():
    bayes, batches = fitted("token classification", prior=FixedPrecision(5.0))
    joined = bayes.predict_loader(batches, progress=False)
    assert joined.probabilities.shape == (3, 4, 3)
    assert joined.labels[2].tolist() == [*batches[1]["labels"][0].tolist(), IGNORED]
    assert joined.mask.sum().item() == 4 + 2 + 3
    rows = joined.at_positions()
    assert len(rows) == 9
    assert rows.mask is None
    alone = torch.cat([bayes.predict(b).at_positions().probabilities for b in batches])
    assert torch.equal(rows.probabilities, alone)
    with pytest.raises(DataError, match="one row a text already"):
        rows.at_positions()


def test_positions_are_rows_for_an_audit():
    bayes, batches = fitted("token classification", prior=FixedPrecision(5.0))
    with pytest.raises(DataError, match=r"Make positions the rows.*at_positions\(\)"):
        predictions_of(bayes, batches)
    rows = Predictions.of(bayes.predict_loader(batches, progress=False).at_positions())
    labels = torch.cat([batch["labels"][batch["attention_mask"] == 1] for batch in batches])
    assert rows.labels.tolist() == labels.tolist()
    assert "epistemic" in rows.score_names


def test_positions_without_a_label_are_left_out_of_the_rows():
    bayes, (batch, *_) = fitted("causal")
    assert len(bayes.predict(batch).at_positions()) == 3 + 1
    unlabelled = {name: column for name, column in batch.items() if name != "labels"}
    assert len(bayes.predict(unlabelled).at_positions()) == 4 + 2


def test_tangent_is_the_linearised_model_at_every_position():
    bayes, (batch, *_) = fitted("token classification", prior=FixedPrecision(10.0))
    logits, found = jacobians(bayes.model, batch)
    drawn = list(islice(single_draws(bayes, seed=2), 3))
    prediction = bayes.predict(batch, Tangent(3, seed=2))
    for n, t in ((0, 0), (0, 3), (1, 1)):
        a = LogOdds.gradient(logits[n, t][None])[0]
        own = slice(3 * t, 3 * t + 3)
        changes = [sum(found[name][n, own] @ d[name] for name in found) for d in drawn]
        variance = sum((a @ change) ** 2 for change in changes) / 3
        covariance = variance * torch.outer(a, a) / (a @ a) ** 2  # the same along a
        exact = LogOdds().softmax(logits[n, t][None], covariance[None])[0]
        information = LogOdds().information(logits[n, t][None], covariance[None])[0]
        assert torch.allclose(prediction.probabilities[n, t], exact, rtol=1e-6)
        assert torch.allclose(prediction.epistemic[n, t], information, rtol=1e-6)


def single_draws(bayes, seed):
    """Changes `w - theta`, flat, by block name: one draw of the posterior after another."""
    generator, mean = seeded(seed), bayes.posterior.mean
    while True:
        drawn = bayes.posterior.sample(1, generator)
        yield {name: (one[0] - mean[name]).flatten() for name, one in drawn.items()}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_what_is_loaded(case, tmp_path):
    bayes, (batch, *_) = fitted(case)
    bayes.save_pretrained(tmp_path)
    loaded = BayesianPeft.from_pretrained(tmp_path)
    assert loaded.likelihood == bayes.likelihood
    assert loaded.predictive == bayes.predictive
    assert type(loaded.model) is type(bayes.model)
    one, other = (b.predict(batch) for b in (bayes, loaded))
    for name, column in one.columns().items():
        if column is not None:
            assert torch.equal(column, other.columns()[name]), name


def test_too_many_exact_passes_are_refused_with_their_number():
    outputs, labels = torch.zeros(1, 30, 20), torch.zeros(1, 30, dtype=torch.long)
    with pytest.raises(ConfigError, match=r"570 backward passes.*RandomSigns"):
        Contrasts().draw(Tokens(), outputs, labels, None)


def fit(model, batch, **settings):
    return bayesianize(model, [batch], progress=False, **settings)


def test_what_is_not_for_tokens_is_refused_in_words():
    model, batch = tagger(), tagged()
    with pytest.raises(ModelError, match=r"likelihood=Tokens\(\)"):
        fit(model, batch)
    with pytest.raises(ConfigError, match=r"Linearized\(\) and HeldOut\(\) are not for Tokens"):
        fit(model, batch, likelihood=Tokens(), prior=HeldOut([batch]))
    bayes = fit(model, batch, likelihood=Tokens())
    with pytest.raises(ConfigError, match=r"not for Tokens.*Tangent\(\)"):
        bayes.predict(batch, Linearized())
    with pytest.raises(DataError, match="one label a position"):
        fit(model, {**batch, "labels": batch["labels"][:, :2]}, likelihood=Tokens())
    with pytest.raises(DataError, match=r"Label \d+ at position \d of row 0 of the batch.*0 to 2"):
        fit(model, tagged(n_labels=20), likelihood=Tokens())


def test_labels_in_the_wrong_place_are_refused():
    with pytest.raises(ConfigError, match=r"not yet shifted.*Tokens\(shift=True\)"):
        fit(causal(), continued(), likelihood=Tokens())
    with pytest.raises(ConfigError, match=r"in its place.*Tokens\(\)"):
        fit(tagger(), tagged(), likelihood=Tokens(shift=True))


def test_a_decoder_without_inputs_is_refused():
    model = translator("bart", ("q_proj", "v_proj"))
    batch = translated(model)
    without = {name: column for name, column in batch.items() if name != "decoder_input_ids"}
    with pytest.raises(DataError, match="DataCollatorForSeq2Seq"):
        fit(model, without, likelihood=Tokens())


def test_one_row_of_logits_is_no_text():
    with pytest.raises(ModelError, match=r"\(N, T, C\).*Categorical"):
        fit(mlp(3, 2), (torch.ones(2, 3).double(), torch.zeros(2, 1).long()), likelihood=Tokens())


def test_joining_nothing_but_masks_keeps_missing_columns_missing():
    part = Prediction(
        torch.zeros(1, 2, 3),
        torch.zeros(1, 2, 3),
        None,
        *(torch.zeros(1, 2) for _ in range(3)),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    assert Prediction.concatenate([part, part]).labels is None
