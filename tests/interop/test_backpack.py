"""BackPACK as an engine: the same gradients as the hooks, and a model left as it was."""

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn

from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.batches import evaluating, forward, split_batch
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import KFAC, DenseGGN, KroneckerGGN, fit_curvature
from posthoc_bhpeft.errors import ConfigError, DeadBlockError, ModelError
from posthoc_bhpeft.interop.backpack import BackPACK, BatchGradPrefix
from posthoc_bhpeft.likelihood import Categorical
from tests.contracts import any_direction, observations, seen_by
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import hybrid, lora, mlp, pairs, prefix

FAMILIES = ["bert", "llama", "distilbert", "qwen3", "gpt2", "opt", "t5", "bart", "deberta_v2"]


def gradients(model, batch, direction, engine):
    seen = observations(model, discover(model), batch, direction, engine)
    return {name: observation.gradient() for name, observation in seen.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_backpack_agrees_with_the_hooks_on_every_block(family):
    model = hybrid(family)
    batch = tiny_batch(model)
    direction = any_direction(model, batch)
    seen = observations(model, discover(model), batch, direction)
    for name, gradient in gradients(model, batch, direction, BackPACK()).items():
        exact = seen[name].gradient()
        assert exact.norm() > 0
        torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-9 * float(exact.abs().max()))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_per_sample_gradients_of_backpack_sum_to_the_gradient(family):
    model = hybrid(family)
    batch = tiny_batch(model)
    direction = any_direction(model, batch)
    (forward(model, split_batch(batch)[0]) * direction).sum().backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters()}
    seen = gradients(model, batch, direction, BackPACK())
    for block in discover(model):
        exact = block.view.read(whole[block.parameter])
        torch.testing.assert_close(seen[block.name].sum(0), exact, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("build", [hybrid, lora], ids=["hybrid", "peft lora"])
@pytest.mark.parametrize("estimator", [KroneckerGGN(), DenseGGN()], ids=["kronecker", "dense"])
def test_a_fit_is_the_same_with_either_engine(build, estimator):
    model = build()
    loader, blocks = tiny_loader(model), discover(model)
    by_hooks = fit_curvature(model, blocks, loader, Categorical(), estimator)
    by_backpack = fit_curvature(model, blocks, loader, Categorical(), estimator, engine=BackPACK())
    for name, operator in by_hooks.operators.items():
        for key, tensor in operator.tensors().items():
            torch.testing.assert_close(by_backpack.operators[name].tensors()[key], tensor)


def test_several_directions_of_one_forward_pass():
    model = hybrid()
    inputs, _ = split_batch(tiny_batch(model))
    blocks = discover(model)
    with evaluating(model), BackPACK()(model, blocks) as tape:
        outputs = forward(model, inputs)
        first = seen_by(tape, outputs, outputs.detach(), retain=True)
        again = seen_by(tape, outputs, 2 * outputs.detach())
    for name, one in first.items():
        torch.testing.assert_close(2 * one.gradient(), again[name].gradient())


def test_it_is_an_engine_of_the_one_call():
    model = hybrid()
    loader = tiny_loader(model)
    plain = bayesianize(model, loader, progress=False)
    other = bayesianize(model, loader, engine=BackPACK(), progress=False)
    assert other.log_marginal_likelihood() == pytest.approx(plain.log_marginal_likelihood())


def everything_about(model):
    """All that BackPACK could leave behind: attributes, hooks, gradients, flags."""
    return {
        "modules": {
            path: {
                name: len(value) if isinstance(value, dict) else value
                for name, value in vars(module).items()
            }
            for path, module in model.named_modules()
        },
        "parameters": {
            name: (sorted(vars(p)), p.requires_grad, p.grad) for name, p in model.named_parameters()
        },
    }


def test_the_model_is_as_it_was():
    model = hybrid()
    before = everything_about(model)
    gradients(model, tiny_batch(model), torch.ones(4, 3, dtype=torch.float64), BackPACK())
    assert everything_about(model) == before


def test_the_model_is_as_it_was_after_an_error():
    model = hybrid("albert")
    before = everything_about(model)
    with pytest.raises(ModelError):
        gradients(model, tiny_batch(model), torch.ones(4, 3), BackPACK())
    assert everything_about(model) == before


def test_what_the_user_extended_stays_extended_and_keeps_its_results():
    model = mlp(3, 4, 2)
    inputs, _ = pairs((5, 3), 2)[0]
    extend(model)
    with backpack(BatchGrad()):
        model(inputs).sum().backward()
    mine = {name: (p.grad.clone(), p.grad_batch) for name, p in model.named_parameters()}
    gradients(model, (inputs, None), torch.ones(5, 2, dtype=torch.float64), BackPACK())
    for name, parameter in model.named_parameters():
        assert parameter.grad_batch is mine[name][1]
        assert torch.equal(parameter.grad, mine[name][0])
    with backpack(BatchGrad()):
        model(inputs).sum().backward()
    assert all(p.grad_batch is not mine[name][1] for name, p in model.named_parameters())


def test_a_layer_without_a_rule_is_named():
    model = nn.Sequential(mlp(3, 4), nn.LayerNorm(4), mlp(4, 2)).double()
    with pytest.raises(ModelError, match=r"'1' \(LayerNorm\).*observing"):
        gradients(model, pairs((5, 3), 2)[0], torch.ones(5, 2), BackPACK())


def test_the_prefix_of_peft_is_refused():
    model = prefix()
    with pytest.raises(ModelError, match=r"prompt_encoder.*base_model.*observing"):
        gradients(model, tiny_batch(model), torch.ones(4, 3), BackPACK())


def test_shared_layers_are_refused():
    model = hybrid("albert")
    with pytest.raises(ModelError, match=r"called 2 times.*observing"):
        gradients(model, tiny_batch(model), torch.ones(4, 3), BackPACK())


def test_kfac_is_refused_since_backpack_gives_no_sides():
    model = hybrid()
    with pytest.raises(ConfigError, match=r"KFAC.*observing"):
        bayesianize(model, tiny_loader(model), curvature=KFAC(), engine=BackPACK(), progress=False)


def test_a_module_that_did_not_run_is_named():
    model = mlp(3, 4, 2)
    model.add_module("idle", nn.Linear(2, 2).double())
    model.forward = lambda x: model[2](model[1](model[0](x)))
    with pytest.raises(DeadBlockError, match="idle"):
        gradients(model, pairs((5, 3), 2)[0], torch.ones(5, 2), BackPACK())


class OwnLinear(nn.Linear):
    """A layer of the user's that BackPACK does not know by its class."""


def test_a_handler_of_the_users_own_layer():
    from backpack.extensions.firstorder.batch_grad.linear import BatchGradLinear

    model = nn.Sequential(OwnLinear(3, 2)).double()
    batch, direction = pairs((5, 3), 2)[0], torch.ones(5, 2, dtype=torch.float64)
    with pytest.raises(ModelError, match="OwnLinear"):
        gradients(model, batch, direction, BackPACK())
    mine = gradients(model, batch, direction, BackPACK({OwnLinear: BatchGradLinear()}))
    seen = observations(model, discover(model), batch, direction)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, seen[name].gradient())


def test_a_handler_that_would_replace_a_built_in_one_is_refused():
    with pytest.raises(ConfigError, match="Linear already"):
        BackPACK({nn.Linear: BatchGradPrefix()})
