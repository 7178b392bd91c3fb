"""Posteriors with curvature of LoRA products: carried on, chained, written to disk, refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from posthoc_bhpeft import (
    KFAC,
    BayesianPeft,
    DenseGGN,
    DiagonalGGN,
    FixedPrecision,
    Gaussian,
    KroneckerGGN,
    bayesianize,
)
from posthoc_bhpeft.blocks import discover, find_products
from posthoc_bhpeft.errors import CheckpointError, ConfigError, MemoryLimitError
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import Chained
from posthoc_bhpeft.size import estimate
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import lora, mlp, pairs, randomize, targets
from tests.test_product_prior import tiny
from tests.tuned import assert_same, fitted, numbers, plain_lora, tuned

LLAMA = {"family": "llama", "target_modules": ["q_proj", "down_proj"]}


def llama() -> nn.Module:
    """peft's LoRA on a tiny Llama."""
    return lora(**LLAMA)


def fit(model: nn.Module, seed: int = 0, **settings) -> BayesianPeft:
    """A posterior over a batch of a model's own."""
    loader = [tiny_batch(model, rows=4, seed=seed)]
    return bayesianize(model, loader, progress=False, **settings)


def next_round(bayes: BayesianPeft, seed: int = 1, **settings) -> BayesianPeft:
    """The posterior chained to one, at weights a little further on."""
    prior = bayes.as_prior(products=True, **settings)
    return fit(randomize(copy.deepcopy(bayes.model), 0.05, seed), seed, prior=prior)


def factors_of(bayes: BayesianPeft) -> set[str]:
    return {b.name for product in bayes.posterior.products for b in product.factors}


def dense(bayes: BayesianPeft, name: str, floor: float = 0.0) -> Tensor:
    """`d I + K` as a matrix."""
    matrix = bayes.posterior.prior.carried[name].dense()
    return matrix + floor * torch.eye(len(matrix), dtype=torch.float64)


# ---------------------------------------------------------------- one posterior


@pytest.mark.parametrize("make", [tuned, llama])
def test_keeping_products_changes_nothing_else(make):
    without, beside = fitted(make()), fitted(make(), products=True)
    assert_same(numbers(without), numbers(beside))
    assert without.reason == beside.reason
    assert not without.posterior.products
    assert beside.posterior.products == find_products(beside.blocks)
    one, other = without.as_prior(), beside.as_prior()
    assert one.carried.keys() == other.carried.keys()
    for name, operator in one.carried.items():
        assert torch.equal(operator.dense(), other.carried[name].dense())


def test_a_prior_about_products_holds_products_in_place_of_factors():
    bayes = fit(llama(), products=True)
    prior, products = bayes.as_prior(products=True), bayes.posterior.products
    assert prior.products == products
    assert not factors_of(bayes) & prior.held.keys()
    for product in products:
        whole = bayes.posterior.curvature[product.name]
        assert torch.equal(prior.held[product.name].dense(), whole.dense())
    assert prior.penalty(bayes.model).item() == pytest.approx(0.0, abs=1e-20)
    assert bayes.as_prior(products=True, forget=0.25).held.keys() == prior.held.keys()


def test_learnt_noise_scales_products_too():
    loader = targets((9, 3), 3)
    known = bayesianize(
        tiny(), loader, likelihood=Gaussian(1.0), products=True, progress=False
    ).posterior
    learnt = bayesianize(tiny(), loader, likelihood=Gaussian(), products=True, progress=False)
    noise = learnt.likelihood.noise_variance
    for product in known.products:
        one = known.curvature[product.name].dense()
        other = learnt.posterior.curvature[product.name].dense()
        assert torch.allclose(one, noise * other, rtol=1e-6)


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize("estimator", [KroneckerGGN(), KFAC(), DiagonalGGN()], ids=repr)
def test_curvature_of_products_adds_up_over_rounds(estimator):
    first = fit(llama(), products=True, curvature=estimator)
    prior = first.as_prior(products=True)
    later = randomize(copy.deepcopy(first.model), 0.05, seed=1)
    second = fit(later, 1, prior=prior, curvature=estimator)
    assert second.posterior.products == first.posterior.products
    total = second.as_prior(products=True)
    for product in second.posterior.products:
        old, new = (b.posterior.curvature[product.name].dense() for b in (first, second))
        assert torch.allclose(total.held[product.name].dense(), old + new)


def test_the_prior_is_linearised_where_the_data_are():
    first = fit(llama(), products=True)
    second = next_round(first)
    posterior = second.posterior
    assert not posterior.bases.keys() & {p.name for p in posterior.products}
    for product in posterior.products:
        left, right = posterior.prior.held[product.name].terms[0].tensors().values()
        up, down = posterior.mean[product.up.name], posterior.mean[product.down.name]
        of_down, of_up = (dense(second, block.name) for block in product.factors)
        assert torch.allclose(of_down, torch.kron(up.T @ left @ up, right))
        assert torch.allclose(of_up, torch.kron(left, down @ right @ down.T))
    given = first.as_prior(products=True)
    again = posterior.with_prior(given)
    assert again.log_marginal_likelihood() == second.log_marginal_likelihood()
    assert given.carried[product.up.name] is not again.prior.carried[product.up.name]


def test_the_evidence_of_a_chained_posterior():
    second = next_round(fit(llama(), products=True))
    posterior, prior = second.posterior, second.posterior.prior
    gain = 0.0
    for block in second.blocks:
        held = dense(second, block.name, prior.precision[block.name])
        whole = held + posterior.curvature[block.name].dense()
        gain += float(torch.logdet(whole) - torch.logdet(held))
    penalty = prior.penalty(second.model).item()
    assert posterior.squared_movement() == pytest.approx(2 * penalty)
    exact = posterior.log_likelihood - penalty - 0.5 * gain
    # Sums of Kronecker terms have an approximate basis.
    assert second.log_marginal_likelihood() == pytest.approx(exact, rel=0.05)
    n_products = len(posterior.products)
    assert f"{n_products} LoRA layers by product" in second.explain()
    assert f"moved {penalty:.1f} nats" in second.explain()


def test_many_rounds_are_merged():
    bayes = fit(llama(), products=True)
    for seed in (1, 2, 3):
        bayes = next_round(bayes, seed, max_terms=1, forget=0.1)
    product = bayes.posterior.products[0]
    assert len(bayes.posterior.prior.held[product.name].terms) == 1
    assert product.name in bayes.posterior.prior.merge_errors


def test_the_floor_may_be_chosen_anew():
    first = fit(llama(), products=True)
    prior = first.as_prior(products=True)
    later = randomize(copy.deepcopy(first.model), 0.05)
    bayes = fit(later, 1, prior=Chained(prior, FixedPrecision(7.0)))
    assert set(bayes.posterior.prior.precision.values()) == {7.0}
    assert bayes.posterior.prior.products == prior.products
    one = fit(later, 1, prior=prior.with_floor(7.0))
    assert_same(numbers(bayes), numbers(one))


def test_from_products_back_to_factors():
    second = next_round(fit(llama(), products=True))
    prior = second.as_prior()
    assert prior.carried.keys() == {block.name for block in second.blocks}
    assert not prior.products
    for name in factors_of(second):
        both = dense(second, name) + second.posterior.curvature[name].dense()
        assert torch.allclose(prior.carried[name].dense(), both)


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize("make", [tuned, lambda: tuned(config=plain_lora())])
def test_saved_and_loaded_it_is_the_same_and_carries_on(make, tmp_path: Path):
    before = next_round(fit(make(), products=True))
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path, model=copy.deepcopy(before.model))
    assert_same(numbers(before), numbers(after))
    assert after.posterior.products == before.posterior.products
    assert after.explain() == before.explain()
    one, other = (b.as_prior(products=True) for b in (before, after))
    assert one.carried.keys() == other.carried.keys()
    for name, operator in one.carried.items():
        assert torch.equal(operator.dense(), other.carried[name].dense())
    carried = [name for name in load_file(tmp_path / "posterior.safetensors") if "carried" in name]
    assert carried
    assert not [name for name in carried if name.split("/")[1] in factors_of(before)]


def edited(folder: Path, edit) -> None:
    """Change the products in the JSON."""
    record = json.loads((folder / "posterior.json").read_text())
    edit(record["products"])
    (folder / "posterior.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "edit",
    [
        lambda products: products.update(other=next(iter(products.values()))),
        lambda products: next(iter(products.values())).pop("structure"),
        lambda products: next(iter(products.values())).update(structure="Tucker"),
        lambda products: next(iter(products.values())).update(carried="DiagonalOperator"),
        lambda products: next(iter(products.values())).pop("carried"),
    ],
    ids=["unknown", "no structure", "unknown structure", "another", "not carried"],
)
def test_edited_products_are_refused(edit, tmp_path: Path):
    before = next_round(fit(llama(), products=True))
    before.save_pretrained(tmp_path)
    edited(tmp_path, edit)
    with pytest.raises(CheckpointError, match=r"[a-z]+ .*\.$"):
        BayesianPeft.from_pretrained(tmp_path, model=before.model)


def test_files_from_before_products_are_read(tmp_path: Path):
    before = fit(llama())
    before.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "posterior.json").read_text())
    assert record.pop("products") == {}
    (tmp_path / "posterior.json").write_text(json.dumps(record))
    after = BayesianPeft.from_pretrained(tmp_path, model=before.model)
    assert_same(numbers(before), numbers(after))


# ---------------------------------------------------------------- errors


def test_a_model_without_lora_has_no_products():
    with pytest.raises(ConfigError, match=r"about LoRA layers, and none of the 4"):
        bayesianize(mlp(3, 4, 2), pairs((5, 3), 2), products=True, progress=False)


def test_a_posterior_without_products_is_no_prior_about_them():
    with pytest.raises(ConfigError, match=r"bayesianize\(model, loader, products=True\)"):
        fit(llama()).as_prior(products=True)


def test_a_prior_that_holds_factors_apart_cannot_go_on_with_products():
    first = fit(llama())
    with pytest.raises(ConfigError, match=r"lora_A.*apart.*as_prior\(products=True\)"):
        fit(first.model, prior=first.as_prior(), products=True)
    isotropic = GaussianPrior.isotropic(discover(first.model), 2.0)
    assert fit(first.model, prior=isotropic, products=True).posterior.products


def test_products_too_large_for_memory_are_told_before_the_fit(monkeypatch):
    model = llama()
    estimator = DenseGGN()
    needed = max(estimate(model, curvature=estimator).factor_phases.values())
    monkeypatch.setattr("posthoc_bhpeft.memory.available_memory", lambda device: needed)
    monkeypatch.setattr("posthoc_bhpeft.api.check_data", lambda *_: pytest.fail("too late"))
    loader = tiny_loader(model)
    with pytest.raises(MemoryLimitError, match=r"iB of it for \d products"):
        bayesianize(model, loader, curvature=estimator, products=True, progress=False)
