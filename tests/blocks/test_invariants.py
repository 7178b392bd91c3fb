"""The invariants of the design, each a test, on a hybrid of every supported family.

Weights are random and every row has its own length, so that padding, shared layers, flattened
rows and grouped heads all have a visible effect.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft.api import BayesianPeft, bayesianize
from posthoc_bhpeft.batches import forward
from posthoc_bhpeft.blocks import Kind, discover
from posthoc_bhpeft.curvature import KroneckerGGN, RandomSigns
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.predictive import MAP, Linearized, MonteCarlo, Sampled
from tests.contracts import any_direction, check_block, observations
from tests.hybrid.families import WITHOUT_PREFIX, families, single_rows, tiny_batch, tiny_loader
from tests.models import hybrid, lora, mlp, pairs, prefix
from tests.oracles import per_sample

FAMILIES = sorted(families())

#: Two ways to the same number in a family that takes square roots or a softmax in float32 inside.
SINGLE_PRECISION = 1e-5


def gradients(model: nn.Module, batch: Any, direction: Tensor) -> dict[str, Tensor]:
    """`G_n` of every block."""
    seen = observations(model, discover(model), batch, direction)
    return {name: observation.gradient() for name, observation in seen.items()}


# ------------------------------------------ every trainable tensor is in exactly one block


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_element_is_in_exactly_one_block(family):
    model = hybrid(family)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    counts = {name: torch.zeros_like(p) for name, p in trainable.items()}
    blocks = discover(model)
    for block in blocks:
        matrix = block.view.read(counts[block.parameter]).clone()
        block.view.write(counts[block.parameter], matrix + 1)
    assert all(bool((count == 1).all()) for count in counts.values())
    assert len({block.name for block in blocks}) == len(blocks)
    expected = {Kind.LORA, Kind.ADAPTER, Kind.HEAD}
    expected |= set() if family in WITHOUT_PREFIX else {Kind.PREFIX}
    assert {block.kind for block in blocks} == expected


# ------------------------------------------ sum_n G_n == grad, and G_n is the row's own gradient


@pytest.mark.parametrize("padding", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_per_sample_gradients_sum_to_the_gradient(family, padding):
    model = hybrid(family)
    batch = tiny_batch(model, padding=padding)
    direction = any_direction(model, batch)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    (forward(model, inputs) * direction).sum().backward()
    whole = dict(model.named_parameters())
    seen = gradients(model, batch, direction)
    for block in discover(model):
        exact = block.view.read(whole[block.parameter].grad)
        assert exact.norm() > 0, f"{block.name} is dead"
        error = (seen[block.name].sum(0) - exact).abs().max()
        assert error < 1e-9 * exact.abs().max() + 1e-12, block.name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_per_sample_gradient_is_that_of_the_row_alone_without_its_padding(family):
    model = hybrid(family)
    batch = tiny_batch(model)
    direction = any_direction(model, batch)
    together = gradients(model, batch, direction)
    scale = {name: gradient.abs().max() for name, gradient in together.items()}
    for row, alone in enumerate(single_rows(batch)):
        for name, gradient in gradients(model, alone, direction[row : row + 1]).items():
            error = (gradient[0] - together[name][row]).abs().max()
            assert error < SINGLE_PRECISION * scale[name], (row, name)


@pytest.mark.parametrize("family", ["bert", "albert", "opt", "llama", "t5", "bart"])
def test_per_sample_gradients_are_those_of_autograd_row_by_row(family):
    model = hybrid(family)
    batch = tiny_batch(model)
    direction = any_direction(model, batch)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    exact = per_sample(model, discover(model), (forward(model, inputs) * direction).sum(1))
    for name, gradient in gradients(model, batch, direction).items():
        error = (gradient - exact[name]).abs().amax((1, 2))
        assert bool((error <= 1e-7 * exact[name].abs().max()).all()), name


@pytest.mark.parametrize("placement", ["sequential", "parallel", "post_layernorm"])
@pytest.mark.parametrize("gates", [False, True], ids=["plain", "gated"])
def test_every_adapter_placement_with_and_without_gates(placement, gates):
    model = hybrid("bert", adapter_placement=placement, gates=gates)
    batch = tiny_batch(model)
    for block in discover(model):
        check_block(model, block, batch)


def test_the_layers_that_albert_shares_are_seen_once_a_call():
    model = hybrid("albert")
    batch = tiny_batch(model)
    seen = observations(model, discover(model), batch, any_direction(model, batch))
    positions = batch["input_ids"].shape[1]
    shared = [s.rows.shape[1] for name, s in seen.items() if "lora" in name]
    assert set(shared) == {model.config.num_hidden_layers * positions}


def test_gradient_checkpointing_left_on_changes_nothing():
    model = hybrid("bert")
    batch = tiny_batch(model)
    direction = any_direction(model, batch)
    plain = gradients(model, batch, direction)
    model.gradient_checkpointing_enable()
    model.train()
    again = gradients(model, batch, direction)
    assert all(torch.equal(gradient, again[name]) for name, gradient in plain.items())


# ------------------------------------------ the model is unchanged by every call


def hooks(model: nn.Module) -> dict[str, int]:
    """How many hooks of each sort every module has."""
    return {
        f"{path} {name}": len(registry)
        for path, module in model.named_modules()
        for name, registry in vars(module).items()
        if "hook" in name and isinstance(registry, dict)
    }


def everything_about(model: nn.Module) -> dict[str, Any]:
    """All that a call could change, apart from values of tensors."""
    return {
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "identity": {name: id(p) for name, p in model.named_parameters()},
        "modes": {path: module.training for path, module in model.named_modules()},
        "hooks": hooks(model),
        "gradients": {
            n: None if p.grad is None else id(p.grad) for n, p in model.named_parameters()
        },
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
    }


def use(model: nn.Module, loader: list[Any]) -> BayesianPeft:
    """Fit, and predict in every way."""
    estimator = KroneckerGGN(RandomSigns(2))
    bayes = bayesianize(model, loader, curvature=estimator, progress=False)
    for predictive in (Linearized(), Linearized(MonteCarlo(8)), Sampled(2), MAP()):
        bayes.predict(loader[0], predictive)
    bayes.predict_loader(loader, progress=False)
    return bayes


def in_mixed_modes(model: nn.Module) -> nn.Module:
    """Every third module in training mode, whatever its parent is in."""
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_fit_and_predict_leave_the_model_as_it_was(family):
    model = in_mixed_modes(hybrid(family))
    loader = tiny_loader(model)
    inputs = {name: tensor for name, tensor in loader[0].items() if name != "labels"}
    forward(model, inputs)  # what the model itself sets up on its first call
    before = everything_about(model)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    use(model, loader)
    assert torch.equal(torch.get_rng_state(), random), "uses the global random state"
    after = everything_about(model)
    for what, state in before.items():
        assert after[what] == state, what
    state = model.state_dict()
    assert list(state) == list(values)
    assert all(torch.equal(tensor, values[name]) for name, tensor in state.items())


@pytest.mark.parametrize("make", [lora, prefix])
def test_plain_peft_models_are_left_as_they_were(make):
    model = in_mixed_modes(make())
    before = everything_about(model)
    use(model, tiny_loader(model))
    after = everything_about(model)
    assert all(after[what] == state for what, state in before.items())


def test_gradients_that_a_user_keeps_stay_as_they_were():
    model = mlp(3, 4, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    use(model, pairs((4, 3), 2))
    assert all(bool((p.grad == 7).all()) for p in model.parameters())


def test_the_model_is_left_as_it_was_after_an_error_too():
    model = in_mixed_modes(hybrid())
    good, bad = tiny_loader(model)
    bad["input_ids"][0, 0] = 10_000
    before = everything_about(model)
    with pytest.raises(DataError, match="out of range"):
        use(model, [good, bad])
    after = everything_about(model)
    assert all(after[what] == state for what, state in before.items())


# ------------------------------------------ chance comes from a generator


def test_a_given_generator_is_used_and_the_global_one_is_not():
    model, loader = mlp(3, 4, 3), pairs((4, 3), 3)
    state = torch.get_rng_state()

    def fit(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        estimator = KroneckerGGN(RandomSigns(1))
        bayes = bayesianize(model, loader, curvature=estimator, generator=generator, progress=False)
        return bayes.posterior.curvature["0.weight"].dense()

    assert torch.equal(fit(0), fit(0))
    assert not torch.equal(fit(0), fit(1))
    assert torch.equal(torch.get_rng_state(), state)
