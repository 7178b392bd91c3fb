"""Products of LoRA layers against gradients of the merged weight, taken without a hook."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import (
    Observation,
    Observed,
    Product,
    discover,
    find_products,
    observing,
    with_products,
)
from posthoc_bhpeft.curvature import KFAC, DenseGGN, DiagonalGGN, Exact, KroneckerGGN, fit_curvature
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import hybrid, lora, mlp, prefix
from tests.oracles import output_hessians, outputs_of, relative_error

LLAMA = {"family": "llama", "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 5}


def stock() -> nn.Module:
    """peft's LoRA on a tiny Llama, scaled by 5 / 2."""
    return lora(**LLAMA)


def layer_of(model: nn.Module, product: Product) -> tuple[str, float]:
    """Path of the LoRA layer and its scaling."""
    path = product.down.module.split(".bhpeft_lora_A")[0].split(".lora_A")[0]
    layer = model.get_submodule(path)
    scalings = layer.lora_scaling if hasattr(layer, "lora_scaling") else layer.scaling
    return path, scalings["default"]


def merged_jacobian(model: nn.Module, product: Product, batch) -> Tensor:
    """`d f_nc / d M`, `(N, C, p, q)`: what the base weight gets, times the scaling of `B A`."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    path, scaling = layer_of(model, product)
    name = f"{path}.base_layer.weight"
    weight = dict(model.named_parameters())[name].detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a slow batching rule of fused attention
        jacobian = torch.func.jacrev(lambda w: outputs_of(model, inputs, {name: w}))(weight)
    return scaling * jacobian.detach()


def observed(model: nn.Module, batch, direction: int) -> dict[str, Tensor]:
    """Gradient of one output of every row, by name of blocks and products."""
    blocks = discover(model)
    with observing(model, blocks) as tape:
        outputs = outputs_of(model, {k: v for k, v in batch.items() if k != "labels"})
        one_hot = torch.zeros_like(outputs)
        one_hot[:, direction] = 1
        found: dict[str, Tensor] = {}

        def see(one: Observed, observation: Observation) -> None:
            found[one.name] = observation.gradient()

        tape.observe(outputs, one_hot, with_products(see, find_products(blocks)))
    return found


# ---------------------------------------------------------------- which blocks belong together


@pytest.mark.parametrize("make", [hybrid, stock])
def test_every_lora_layer_is_one_product(make):
    model = make()
    blocks = discover(model)
    products = find_products(blocks)
    factors = [block.name for product in products for block in product.factors]
    assert sorted(factors) == sorted(block.name for block in blocks if "lora_" in block.name)
    parameters = dict(model.named_parameters())
    for product in products:
        p, q = model.get_submodule(layer_of(model, product)[0]).base_layer.weight.shape
        assert (product.shape, product.size) == ((p, q), p * q)
        assert product.name == product.up.name.replace("lora_B", "lora_BA")
        weights = {block.name: parameters[block.name] for block in product.factors}
        merged = parameters[product.up.parameter] @ parameters[product.down.parameter]
        assert torch.equal(product.matrix(weights), merged)
    assert len({product.name for product in products} | set(parameters)) == len(products) + len(
        parameters
    )


def test_two_adapters_are_products_of_their_own():
    model = lora(task_type=None)
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    products = find_products(discover(model.eval().double()))
    assert len(products) == 2 * len(find_products(discover(lora(task_type=None))))
    for product in products:
        assert product.down.name.split(".")[-2] == product.up.name.split(".")[-2]


def test_other_blocks_and_single_factors_are_left_apart():
    assert find_products(discover(mlp(3, 4, 2))) == ()
    assert find_products(discover(prefix())) == ()
    model = hybrid()
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "layer.0" in name:
            parameter.requires_grad_(False)
    found = find_products(discover(model))
    assert found
    assert all("layer.0" not in product.name for product in found)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("make", [hybrid, stock])
def test_the_gradient_is_that_of_the_merged_weight(make):
    model = make()
    batch = tiny_batch(model, rows=3)
    gradients = observed(model, batch, direction=1)
    for product in find_products(discover(model)):
        exact = merged_jacobian(model, product, batch)[:, 1]
        assert exact.norm() > 0
        assert torch.allclose(gradients[product.name], exact, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hybrid(gates=True),
        lambda: hybrid("albert"),
        lambda: hybrid("gpt2"),
        lambda: lora(lora_bias=True, lora_dropout=0.5),
    ],
    ids=["gates", "shared-layers", "conv1d", "bias-and-dropout"],
)
def test_the_factors_gradients_follow_from_the_products(make):
    model = make()
    parameters = dict(model.named_parameters())
    gradients = observed(model, tiny_batch(model, rows=3), direction=0)
    products = find_products(discover(model))
    assert products
    for product in products:
        whole = gradients[product.name]
        up, down = parameters[product.up.parameter], parameters[product.down.parameter]
        assert torch.allclose(up.T @ whole, gradients[product.down.name], rtol=1e-8, atol=1e-12)
        assert torch.allclose(whole @ down.T, gradients[product.up.name], rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------- curvature


def fit(model: nn.Module, loader, estimator, *, products: bool = True):
    """Operators by name."""
    blocks = discover(model)
    pairs = find_products(blocks) if products else ()
    fitted = fit_curvature(model, blocks, loader, Categorical(), estimator, products=pairs)
    return fitted.operators


@pytest.mark.parametrize("make", [hybrid, stock])
def test_factors_are_those_of_explicit_gradients_of_the_merged_weight(make):
    model = make()
    loader = tiny_loader(model, rows=3)
    operators = fit(model, loader, KroneckerGGN(directions=Exact()))
    dense = fit(model, loader, DenseGGN())
    for product in find_products(discover(model)):
        left, right, full = 0, 0, 0
        for batch in loader:
            jacobian = merged_jacobian(model, product, batch)
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            outputs = outputs_of(model, inputs)
            hessians = output_hessians(Categorical(), outputs, batch["labels"]).detach()
            left = left + torch.einsum("ncpq,nck,nkrq->pr", jacobian, hessians, jacobian)
            right = right + torch.einsum("ncpq,nck,nkpr->qr", jacobian, hessians, jacobian)
            flat = jacobian.flatten(2)
            full = full + torch.einsum("ncP,nck,nkQ->PQ", flat, hessians, flat)
        found, trace = operators[product.name], left.trace()
        # Llama's norms compute in float32 whatever the model is in.
        assert relative_error(found.left * trace.sqrt(), left) < 1e-6
        assert relative_error(found.right * trace.sqrt(), right) < 1e-6
        assert relative_error(dense[product.name].dense(), full) < 1e-6


@pytest.mark.parametrize("estimator", [KroneckerGGN(), DiagonalGGN(), KFAC()], ids=repr)
def test_the_factors_own_curvature_stays_as_it_was(estimator):
    model = stock()
    loader = tiny_loader(model, rows=3)
    alone = fit(model, loader, estimator, products=False)
    both = fit(model, loader, estimator)
    for name, operator in alone.items():
        assert torch.equal(operator.dense(), both[name].dense())
    assert len(both) == len(alone) + len(find_products(discover(model)))
    for product in find_products(discover(model)):
        numbers = sum(tensor.numel() for tensor in both[product.name].tensors().values())
        assert both[product.name].shape == product.shape
        assert numbers <= estimator.storage(product)


def test_rows_without_a_label_add_nothing():
    model = stock()
    batch = tiny_batch(model, rows=3)
    padded = copy.deepcopy(batch)
    twice = {key: torch.cat([batch[key], padded[key]]) for key in batch}
    twice["labels"][3:] = -100
    one, other = fit(model, [batch], DiagonalGGN()), fit(model, [twice], DiagonalGGN())
    for product in find_products(discover(model)):
        assert torch.allclose(one[product.name].dense(), other[product.name].dense(), rtol=1e-9)


def test_an_engine_without_sides_has_no_products():
    blocks = discover(stock())
    product = find_products(blocks)[0]
    sides = Observation(torch.ones(1, 2, 2), torch.ones(1, 2, 2), factored=False)
    with pytest.raises(ConfigError, match=r"output gradients.*default engine, observing"):
        with_products(lambda *_: None, [product])(product.down, sides)
