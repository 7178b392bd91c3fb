"""A prior about LoRA products: its penalty, what it is for the factors, and chained posteriors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block, Product, discover, find_products
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import OperatorSum, quadratic_form
from posthoc_bhpeft.posterior import read_weights
from posthoc_bhpeft.prior import GaussianPrior
from tests.models import hybrid, linear, lora, randomize, seeded
from tests.test_prior import operator_of

STRUCTURES = ("K", "KK", "D", "F", "KD", "KF")


class LoraLayer(nn.Module):
    """`B A x`, its factors named as peft does."""

    def __init__(self, p: int, q: int, rank: int, seed: int) -> None:
        super().__init__()
        self.lora_A, self.lora_B = linear(q, rank, seed=seed), linear(rank, p, seed=seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))


def tiny(*, n_outputs: int = 3, seed: int = 0) -> nn.Module:
    """Two LoRA layers, (4, 3) and (5, 4), of rank 2, and a head."""
    return nn.Sequential(
        LoraLayer(4, 3, 2, seed),
        nn.Tanh(),
        LoraLayer(5, 4, 2, seed + 2),
        linear(5, n_outputs, bias=True, seed=9),
    )


def prior_of(model: nn.Module, structures: str, floor: float = 0.3) -> GaussianPrior:
    """Around present weights, random curvature of products and of all other blocks."""
    blocks = discover(model)
    products = find_products(blocks)
    factors = {block.name for product in products for block in product.factors}
    carried = {}
    for index, one in enumerate([*products, *(b for b in blocks if b.name not in factors)]):
        terms = [operator_of(s, one.shape, 7 * index + 3 * i) for i, s in enumerate(structures)]
        carried[one.name] = OperatorSum(tuple(terms))
    mean = read_weights(model, blocks)
    floors = {block.name: floor for block in blocks}
    return GaussianPrior(floors, mean, carried, blocks, products=products).linearized_at(mean)


def moved(model: nn.Module, spread: float = 0.3, seed: int = 3) -> nn.Module:
    """A copy, trained on as it were."""
    return randomize(copy.deepcopy(model), spread, seed)


def dense_penalty(prior: GaussianPrior, weights: Mapping[str, Tensor]) -> Tensor:
    """`1/2 vec(M - M0)^T K vec(M - M0)` and all other terms, written out with full matrices."""
    total = torch.zeros((), dtype=torch.float64)
    factors = {block.name for product in prior.products for block in product.factors}
    for name, weight in weights.items():
        step = (weight - prior.mean[name]).flatten()
        total = total + 0.5 * prior.precision[name] * step @ step
        if name not in factors:
            total = total + 0.5 * step @ prior.carried[name].dense() @ step
    for product in prior.products:
        step = (product.matrix(weights) - product.matrix(prior.mean)).flatten()
        total = total + 0.5 * step @ prior.carried[product.name].dense() @ step
    return total


def leaves(model: nn.Module, blocks: tuple[Block, ...]) -> dict[str, Tensor]:
    """Weights by block name, as leaves of a graph."""
    return {name: w.requires_grad_() for name, w in read_weights(model, blocks).items()}


# ---------------------------------------------------------------- the penalty


@pytest.mark.parametrize("structures", STRUCTURES)
def test_penalty_and_gradients_are_those_of_the_dense_form(structures):
    start = tiny()
    prior, model = prior_of(start, structures), moved(start)
    penalty = prior.penalty(model)
    weights = leaves(model, prior.blocks)
    exact = dense_penalty(prior, weights)
    assert penalty.item() == pytest.approx(exact.item(), rel=1e-12)
    penalty.backward()
    exact.backward()
    for name, parameter in model.named_parameters():
        expected = weights[name].grad.reshape(parameter.shape)
        assert torch.allclose(parameter.grad, expected, rtol=1e-10, atol=1e-12)
    assert prior.penalty(start).item() == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize(
    "make", [hybrid, lambda: lora("llama", target_modules=["q_proj", "v_proj"])]
)
def test_on_a_transformer(make):
    start = make()
    prior, model = prior_of(start, "KK"), moved(start, 0.05)
    exact = dense_penalty(prior, read_weights(model, prior.blocks))
    assert prior.penalty(model).item() == pytest.approx(exact.item(), rel=1e-10)


@pytest.mark.parametrize("structures", STRUCTURES)
def test_it_does_not_matter_how_a_product_is_split(structures):
    start = tiny()
    prior, model = prior_of(start, structures, floor=1e-300), moved(start)
    turned = copy.deepcopy(model)
    with torch.no_grad():
        for index, layer in enumerate((turned[0], turned[2])):
            turn = torch.randn(2, 2, generator=seeded(index), dtype=torch.float64)
            layer.lora_B.weight.copy_(layer.lora_B.weight @ turn)
            layer.lora_A.weight.copy_(torch.linalg.solve(turn, layer.lora_A.weight))
    assert not torch.allclose(turned[0].lora_A.weight, model[0].lora_A.weight)
    assert prior.penalty(turned).item() == pytest.approx(prior.penalty(model).item(), rel=1e-9)
    apart = replace(prior, products=())
    assert apart.penalty(turned).item() != pytest.approx(apart.penalty(model).item(), rel=0.01)


def test_the_floor_stays_on_the_factors():
    start = tiny()
    prior, model = prior_of(start, "K", floor=0.5), moved(start)
    steps = [prior.movement(b, read_weights(model, [b])[b.name]) for b in prior.blocks]
    squared = sum(float(step.square().sum()) for step in steps)
    gap = prior.with_floor(2.0).penalty(model) - prior.penalty(model)
    assert gap.item() == pytest.approx(0.75 * squared)


def test_a_mean_that_is_left_out_is_zero():
    model = moved(tiny())
    prior = replace(prior_of(model, "K"), mean={})
    zeros = {block.name: torch.zeros(block.shape).double() for block in prior.blocks}
    exact = dense_penalty(replace(prior, mean=zeros), read_weights(model, prior.blocks))
    assert prior.penalty(model).item() == pytest.approx(exact.item())


def test_small_steps_are_not_lost_in_single_precision():
    start = tiny()
    prior, model = prior_of(start, "K", floor=1e-12), moved(start, 1e-5).float()
    weights = read_weights(model, prior.blocks)
    wide = {name: weight.double() for name, weight in weights.items()}
    product = prior.products[0]
    operator = prior.carried[product.name]
    narrow = {name: wide[name].float() - prior.mean[name].float() for name in wide}
    exact = {name: narrow[name].double() for name in wide}
    found = quadratic_form(operator, *product.change(weights, narrow))
    assert found.dtype == torch.float32
    truth = quadratic_form(operator, *product.change(wide, exact))
    assert found.item() == pytest.approx(truth.item(), rel=1e-5)


# ---------------------------------------------------------------- what it is for the factors


def hessian(prior: GaussianPrior, weights: dict[str, Tensor], name: str) -> Tensor:
    """Second derivative of the penalty in one block, by autograd, without the floor."""
    shape = weights[name].shape

    def energy(flat: Tensor) -> Tensor:
        return prior.energy({**weights, name: flat.reshape(shape)})

    whole = torch.func.hessian(energy)(weights[name].detach().flatten())
    return whole - prior.precision[name] * torch.eye(len(whole), dtype=torch.float64)


def gauss_newton(product: Product, prior: GaussianPrior, weights, name: str) -> Tensor:
    """`J^T K J` with `J = d vec(M) / d factor`."""
    jacobian = torch.func.jacrev(lambda w: product.matrix({**weights, name: w}))(weights[name])
    flat = jacobian.flatten(0, 1).flatten(1)
    return flat.T @ prior.carried[product.name].dense() @ flat


@pytest.mark.parametrize("structures", ["K", "KK", "F", "KF"])
def test_at_its_mean_the_linearisation_is_the_hessian(structures):
    prior = prior_of(tiny(), structures)
    for product in prior.products:
        for factor in product.factors:
            exact = hessian(prior, dict(prior.mean), factor.name)
            assert torch.allclose(prior.carried[factor.name].dense(), exact, rtol=1e-9)


@pytest.mark.parametrize("structures", ["K", "KK", "F", "D"])
def test_elsewhere_it_is_gauss_newton(structures):
    start = tiny()
    prior, model = prior_of(start, structures), moved(start)
    weights = read_weights(model, prior.blocks)
    there = prior.linearized_at(weights)
    for product in prior.products:
        for factor in product.factors:
            exact = gauss_newton(product, prior, weights, factor.name)
            if structures == "D":
                exact = torch.diag(exact.diagonal())
            assert torch.allclose(there.carried[factor.name].dense(), exact, rtol=1e-9)
            assert not torch.allclose(prior.carried[factor.name].dense(), exact, rtol=0.01)
    assert there.penalty(model).item() == prior.penalty(model).item()


def test_a_kronecker_product_stays_one_and_shares_its_large_factor():
    prior = prior_of(tiny(), "K")
    for product in prior.products:
        whole, down, up = (
            prior.carried[name].terms[0]
            for name in (product.name, product.down.name, product.up.name)
        )
        assert down.right is whole.right
        assert up.left is whole.left


# ---------------------------------------------------------------- other priors made from it


def test_tempering_multiplies_products_and_factors():
    start = tiny()
    prior, model = prior_of(start, "KK"), moved(start)
    held = prior.tempered(2.5)
    assert held.penalty(model).item() == pytest.approx(2.5 * prior.penalty(model).item())
    for name, operator in held.carried.items():
        assert torch.allclose(operator.dense(), 2.5 * prior.carried[name].dense())


def test_a_head_grows_beside_products():
    start = tiny(n_outputs=3)
    prior, larger = prior_of(start, "KK"), moved(tiny(n_outputs=5))
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            dict(larger.named_parameters())[name][: len(parameter)] = parameter
    grown = prior.grown(larger)
    assert [p.name for p in grown.products] == [p.name for p in prior.products]
    assert grown.penalty(larger).item() == pytest.approx(0.0, abs=1e-20)
    trained, same = moved(larger), moved(larger)
    with torch.no_grad():
        for name in ("3.weight", "3.bias"):
            there = dict(same.named_parameters())[name]
            there.copy_(dict(larger.named_parameters())[name])
    head = grown.penalty(trained) - grown.penalty(same)
    rest = prior.penalty(nn.Sequential(*list(same[:3]), start[3]))
    assert grown.penalty(trained).item() == pytest.approx(head.item() + rest.item())


def test_a_product_that_grows_knows_nothing_of_its_new_rows():
    start, larger = tiny(), tiny()
    larger[2] = LoraLayer(7, 4, 2, 2)
    larger[3] = linear(7, 3, bias=True)
    prior = prior_of(start, "K")
    apart = {"3.weight", "3.bias"}
    prior = replace(prior, blocks=tuple(b for b in prior.blocks if b.name not in apart))
    grown = prior.grown(larger)
    last = grown.products[-1]
    assert last.shape == (7, 4)
    dense = grown.carried[last.name].dense()
    assert torch.equal(dense[:20, :20], prior.carried[last.name].dense())
    assert not dense[20:].any()


def test_products_without_curvature_are_refused():
    blocks = discover(tiny())
    with pytest.raises(ConfigError, match=r"0\.lora_BA\.weight.*as_prior\(products=True\)"):
        GaussianPrior({b.name: 1.0 for b in blocks}, products=find_products(blocks))
