"""Merging against dense solves and against learning everything at once; and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft import (
    BayesianPeft,
    DenseGGN,
    DiagonalGGN,
    Exact,
    FixedPrecision,
    Gaussian,
    KroneckerGGN,
    bayesianize,
)
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.linalg import LowRankFactor
from posthoc_bhpeft.merging import common_prior, merge
from posthoc_bhpeft.merging.checks import check_common_start, likeness
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.review import ReviewRule
from tests.hybrid.families import tiny_batch
from tests.models import hybrid, mlp, pairs, randomize, targets
from tests.test_chaining import NOISE, SideBySide, assert_same_gaussian, learn, precision, start
from tests.tuned import assert_same, numbers, tuned

DATA = targets((7, 6), 4, batches=6)


def parts_of(loader: Sequence[Any], k: int) -> list[Sequence[Any]]:
    size = len(loader) // k
    return [loader[i * size : (i + 1) * size] for i in range(k)]


# ---------------------------------------------------------------- where it is exact


def uneven(prior: GaussianPrior) -> GaussianPrior:
    """The same prior with a mean, so that it does not vanish from the sums."""
    mean = {b.name: torch.full(b.shape, 0.7, dtype=torch.float64) for b in prior.blocks}
    return replace(prior, mean=mean)


PRIORS = {
    "around zero": start,
    "around a mean": lambda: uneven(start()),
    "carried": lambda: learn(uneven(start()), DATA[:1], KroneckerGGN(Exact())).as_prior(),
}


@pytest.mark.parametrize("curvature", [DenseGGN(), KroneckerGGN(Exact())], ids=["dense", "K"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", PRIORS)
def test_parts_of_a_linear_model_merge_into_the_whole(name, k, curvature):
    prior = PRIORS[name]()
    parts = [learn(prior, part, curvature) for part in parts_of(DATA, k)]
    merged, whole = merge(parts, prior=prior), learn(prior, DATA, curvature)
    assert_same_gaussian(merged, whole)
    assert merged.posterior.n_rows == whole.posterior.n_rows == 42
    assert merged.posterior.log_likelihood == pytest.approx(
        whole.posterior.log_likelihood, rel=1e-9
    )
    assert merged.log_marginal_likelihood() == pytest.approx(
        whole.log_marginal_likelihood(), rel=1e-9
    )
    average = sum(p.posterior.mean["one.weight"] for p in parts) / k
    gap = (average - merged.posterior.mean["one.weight"]).norm()
    assert float(gap) > 0.01, "averaging would have done"


def test_the_order_of_the_parts_does_not_matter():
    prior = uneven(start())
    parts = [learn(prior, part, KroneckerGGN(Exact())) for part in parts_of(DATA, 3)]
    assert_same_gaussian(merge(parts, prior=prior), merge(parts[::-1], prior=prior))


def test_merging_in_two_steps_is_merging_at_once():
    prior = start()
    parts = [learn(prior, part, DenseGGN()) for part in parts_of(DATA, 3)]
    pair = merge(parts[:2], prior=prior)
    assert_same_gaussian(merge([pair, parts[2]], prior=prior), merge(parts, prior=prior))


def test_nobody_has_audited_a_merged_posterior():
    """A part's rule for review promises something about that part's answers alone."""
    prior = start()
    parts = [learn(prior, part, DenseGGN()) for part in parts_of(DATA, 2)]
    rule = ReviewRule("total", 0.3, "At most 5 % are wrong.", 8, "0" * 64, "Linearized()")
    audited = [part.with_review(rule) for part in parts]
    assert merge(audited, prior=prior).review_rule is None
    assert all(part.review_rule is rule for part in audited)


def test_a_merged_posterior_is_a_prior_like_any_other():
    prior = start()
    parts = [learn(prior, part, DenseGGN()) for part in parts_of(DATA, 3)]
    later = learn(merge(parts[:2], prior=prior).as_prior(), DATA[4:], DenseGGN())
    assert_same_gaussian(later, learn(prior, DATA, DenseGGN()))


# ---------------------------------------------------------------- against dense algebra


def classifiers(prior: GaussianPrior, k: int, curvature: Any) -> list[BayesianPeft]:
    """Fits of a model that is not linear, each somewhere else."""
    return [
        bayesianize(
            randomize(mlp(4, 3, 3), 0.3, seed=index),
            pairs((9, 4), 3, seed=index),
            curvature=curvature,
            prior=prior,
            progress=False,
        )
        for index in range(k)
    ]


def carried_prior() -> GaussianPrior:
    """Two Kronecker terms, and a mean."""
    model = mlp(4, 3, 3)
    bayes = bayesianize(model, pairs((9, 4), 3, seed=8), progress=False)
    again = bayesianize(model, pairs((9, 4), 3, seed=9), prior=bayes.as_prior(), progress=False)
    return again.as_prior().with_floor(0.8)


@pytest.mark.parametrize(
    "curvature",
    [KroneckerGGN(), KroneckerGGN(rank=1, wide=4), DiagonalGGN(), DenseGGN()],
    ids=["K", "K in low rank", "diagonal", "dense"],
)
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("make", [carried_prior, lambda: common_prior(mlp(4, 3, 3), 0.8)])
def test_the_mean_is_that_of_a_dense_solve_of_the_same_operators(make, k, curvature):
    prior = make()
    parts = classifiers(prior, k, curvature)
    merged = merge(parts, prior=prior)
    for block in merged.blocks:
        name = block.name
        held = precision(parts[0], name) - parts[0].posterior.curvature[name].dense()
        total, right = held.clone(), -(k - 1) * held @ prior.mean[name].flatten()
        for part in parts:
            own = precision(part, name)
            total += own - held
            right += own @ part.posterior.mean[name].flatten()
        exact = torch.linalg.solve(total, right)
        found = merged.posterior.mean[name].flatten()
        assert torch.allclose(found, exact, rtol=1e-8, atol=1e-9)


def test_sides_in_low_rank_stay_so():
    prior = common_prior(mlp(4, 3, 3), 0.8)
    merged = merge(classifiers(prior, 3, KroneckerGGN(rank=1, wide=4)), prior=prior, max_terms=1)
    (term,) = merged.posterior.curvature["0.weight"].terms
    assert isinstance(term.right, LowRankFactor)
    assert len(term.right.values) == 1


def test_terms_are_merged_after_the_mean_was_solved_for():
    prior = carried_prior()
    parts = classifiers(prior, 4, KroneckerGGN())
    rough, fine = (merge(parts, prior=prior, max_terms=n) for n in (1, 4))
    for block in rough.blocks:
        name = block.name
        assert torch.equal(rough.posterior.mean[name], fine.posterior.mean[name])
        assert len(rough.posterior.curvature[name].terms) == 1
        exact = sum(part.posterior.curvature[name].dense() for part in parts)
        assert torch.allclose(fine.posterior.curvature[name].dense(), exact)
    assert "merged with a relative error of up to" in rough.explain()
    assert "relative error" not in fine.explain()
    for text in ("Merged from 4 posteriors over 18 + 18 + 18 + 18 rows", "conjugate gradient"):
        assert text in fine.explain()


# ---------------------------------------------------------------- on adapters


def trained(model: Any, prior: GaussianPrior, seed: int) -> BayesianPeft:
    """A copy of a model, moved a little and fitted on rows of its own."""
    later = randomize(copy.deepcopy(model), 0.02, seed=seed)
    return bayesianize(later, [tiny_batch(later, seed=seed)], prior=prior, progress=False)


def test_adapters_are_merged_saved_and_loaded(tmp_path: Path):
    model = tuned()
    prior = common_prior(model, 30.0)
    parts = [trained(model, prior, seed) for seed in (1, 2, 3)]
    merged = merge(parts, prior=prior)
    merged.check_unchanged()
    merged.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    assert_same(numbers(merged), numbers(after))
    assert after.explain() == merged.explain()
    assert merged.posterior.n_rows == 12


def test_loaded_posteriors_are_merged_like_those_in_memory(tmp_path: Path):
    model = tuned()
    prior = common_prior(model, 30.0)
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    for index, part in enumerate(parts):
        part.save_pretrained(tmp_path / str(index))
    loaded = [BayesianPeft.from_pretrained(tmp_path / str(index)) for index in range(2)]
    first, second = merge(parts, prior=prior), merge(loaded, prior=loaded[0].posterior.prior)
    assert_same(numbers(first), numbers(second))


def test_the_models_are_left_as_they_were():
    model = hybrid()
    prior = common_prior(model)
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    before = [copy.deepcopy(part.model.state_dict()) for part in parts]
    merged = merge(parts, prior=prior)
    for part, state in zip(parts, before, strict=True):
        part.check_unchanged()
        now = part.model.state_dict()
        assert all(torch.equal(tensor, now[name]) for name, tensor in state.items())
        assert merged.model is not part.model
    trainable = {name: p.requires_grad for name, p in parts[0].model.named_parameters()}
    assert {name: p.requires_grad for name, p in merged.model.named_parameters()} == trainable


def test_single_precision_adapters_are_solved_for_in_double():
    model = hybrid().float()
    prior = common_prior(model, 30.0)
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    merged = merge(parts, prior=prior)
    for block in merged.blocks:
        mean = merged.posterior.mean[block.name]
        assert mean.dtype == torch.float32
        assert all(t.dtype == mean.dtype for t in tensors_of(merged, block.name))
    assert bool(merged.predict(tiny_batch(model)).probabilities.isfinite().all())


def tensors_of(bayes: BayesianPeft, name: str) -> list[Tensor]:
    return list(bayes.posterior.curvature[name].tensors().values())


def test_a_prior_about_products_is_taken_as_it_is_around_its_mean(tmp_path: Path):
    model = tuned()
    first = bayesianize(
        model, [tiny_batch(model)], prior=common_prior(model), products=True, progress=False
    )
    prior = first.as_prior(products=True)
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    merged = merge(parts, prior=prior)
    for block in (b for product in prior.products for b in product.factors):
        name = block.name
        eye = prior.precision[name] * torch.eye(block.size, dtype=torch.float64)
        held = eye + prior.carried[name].dense()
        total, right = held.clone(), torch.zeros(block.size, dtype=torch.float64)
        for part in parts:
            own = part.posterior.curvature[name].dense()
            total += own
            moved = part.posterior.mean[name] - prior.mean[name]
            right += (held + own) @ moved.flatten()
        exact = prior.mean[name].flatten() + torch.linalg.solve(total, right)
        assert torch.allclose(merged.posterior.mean[name].flatten(), exact, rtol=1e-8)
    with pytest.raises(ConfigError, match="Posterior 1 was fitted with another prior"):
        merge(parts, prior=GaussianPrior.isotropic(first.blocks, 10.0))
    assert merged.posterior.products == first.posterior.products != ()
    assert merged.posterior.squared_movement() == pytest.approx(
        2 * prior.penalty(merged.model).item()
    )
    merged.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    assert_same(numbers(merged), numbers(after))
    nexts = [bayes.as_prior(products=True).penalty(model) for bayes in (merged, after)]
    assert torch.equal(*nexts)


def test_products_that_one_part_has_not_are_dropped():
    model = tuned()
    prior = common_prior(model, 30.0)
    batch = [tiny_batch(model)]
    parts = [
        bayesianize(model, batch, prior=prior, products=wanted, progress=False)
        for wanted in (True, False)
    ]
    assert parts[0].posterior.products
    assert merge(parts, prior=prior).posterior.products == ()
    assert len(merge([parts[0]] * 2, prior=prior).posterior.products) == 4


# ---------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def two() -> tuple[GaussianPrior, list[BayesianPeft]]:
    prior = common_prior(mlp(4, 3, 3))
    return prior, classifiers(prior, 2, KroneckerGGN())


@pytest.mark.parametrize("k", [0, 1])
def test_one_is_too_few(two, k):
    prior, parts = two
    with pytest.raises(ConfigError, match=rf"two posteriors or more, got {k}"):
        merge(parts[:k], prior=prior)


def refitted(bayes: BayesianPeft, **settings: Any) -> BayesianPeft:
    loader = pairs((9, 4), bayes.posterior.n_outputs)
    return bayesianize(bayes.model, loader, progress=False, **settings)


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("precision", lambda prior, bayes: refitted(bayes)),
        ("precision", lambda prior, bayes: refitted(bayes, prior=prior.tempered(1.01))),
        ("precision", lambda prior, bayes: refitted(bayes, prior=bayes.as_prior())),
        ("mean", lambda prior, bayes: refitted(bayes, prior=replace(prior, mean={}))),
        ("mean", lambda prior, bayes: refitted(bayes, prior=common_prior(mlp(4, 3, 3, seed=5)))),
    ],
    ids=["a rule's", "tempered", "carried", "no mean", "another mean"],
)
def test_another_prior_is_refused(two, what, make):
    prior, parts = two
    with pytest.raises(
        ConfigError,
        match=rf"Posterior 2 .*its {what} differs in block '0.weight'.*prior=prior\)",
    ):
        merge([parts[0], make(prior, parts[1])], prior=prior)


def test_a_prior_that_none_was_fitted_with_is_refused(two):
    prior, parts = two
    with pytest.raises(ConfigError, match="Posterior 1 was fitted with another prior"):
        merge(parts, prior=prior.with_floor(9.0))


def test_a_prior_of_other_blocks_is_refused(two):
    _, parts = two
    with pytest.raises(ConfigError, match="prior= is about other blocks"):
        merge(parts, prior=common_prior(mlp(4, 5, 3)))


def test_other_blocks_are_refused(two):
    prior, parts = two
    other = bayesianize(mlp(4, 5, 3), pairs((9, 4), 3), progress=False)
    with pytest.raises(ConfigError, match=r"'0.weight' has shape \(5, 4\) in posterior 2 and \(3"):
        merge([parts[0], other], prior=prior)


def test_another_number_of_labels_is_refused(two):
    prior, parts = two
    other = bayesianize(mlp(4, 3, 2), pairs((9, 4), 2), progress=False)
    with pytest.raises(ConfigError, match=r"2 has 2 outputs and the first 3.*one set of labels"):
        merge([parts[0], other], prior=prior)


def test_labels_in_another_order_are_refused():
    model = tuned()
    prior = common_prior(model, 30.0)
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    parts[1].model.config.id2label = {0: "good", 1: "fair", 2: "bad"}
    with pytest.raises(ConfigError, match=r"posterior 2 stand for .*'good'.*same order"):
        merge(parts, prior=prior)


def test_another_likelihood_is_refused():
    prior = start()
    one = learn(prior, DATA[:2], DenseGGN())
    other = bayesianize(one.model, DATA[2:], likelihood=Gaussian(0.9), prior=prior, progress=False)
    with pytest.raises(ConfigError, match=r"noise_variance=0.9.*noise_variance=0.4.*Fit all with"):
        merge([one, other], prior=prior)
    assert one.likelihood == NOISE
    assert isinstance(one.model, SideBySide)


def test_another_base_model_is_refused():
    model = tuned()
    prior = common_prior(model, 30.0)
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    with torch.no_grad():
        for name, parameter in parts[1].model.named_parameters():
            if "attention" in name and not parameter.requires_grad:
                parameter.add_(0.1)
    with pytest.raises(ModelError, match=r"Posterior 2 is about another model.*frozen tensor"):
        merge(parts, prior=prior)


@pytest.mark.parametrize("mean", [True, False], ids=["prior around a start", "prior around zero"])
def test_adapters_from_different_random_weights_are_refused(mean):
    models = [tuned(seed=1), tuned(seed=2)]
    prior = common_prior(models[0], 30.0)
    prior = prior if mean else replace(prior, mean={})
    parts = [trained(model, prior, 3) for model in models]
    where = "the mean of prior=" if mean else "that of posterior 1"
    with pytest.raises(ConfigError, match=rf"adapter of posterior 2 has a cosine.*{where}"):
        merge(parts, prior=prior)


def test_adapters_from_one_start_need_no_mean_in_the_prior():
    model = tuned()
    prior = replace(common_prior(model, 30.0), mean={})
    parts = [trained(model, prior, seed) for seed in (1, 2)]
    assert likeness(parts[0].blocks, parts[0].posterior.mean, parts[1].posterior.mean) > 0.9
    assert merge(parts, prior=prior).posterior.n_rows == 8


def test_a_start_at_zero_says_nothing_of_a_common_one():
    """LoRA's B starts at zero: there is no likeness to lose."""
    model = tuned()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    blocks = discover(model)
    zero = {b.name: torch.zeros(b.shape, dtype=torch.float64) for b in blocks}
    prior = GaussianPrior.isotropic(blocks, 30.0, mean=zero)
    parts = [
        bayesianize(randomize(copy.deepcopy(model), 1.0, seed=s), [tiny_batch(model)], prior=prior)
        for s in (1, 2)
    ]
    check_common_start([part.posterior for part in parts], prior)


def test_fits_of_the_one_call_alone_have_no_common_prior():
    model = tuned()
    parts = [
        bayesianize(model, [tiny_batch(model)], prior=FixedPrecision(p), progress=False)
        for p in (1.0, 2.0)
    ]
    with pytest.raises(ConfigError, match=r"bayesianize\(model, loader, prior=prior\)"):
        merge(parts, prior=parts[0].posterior.prior)
