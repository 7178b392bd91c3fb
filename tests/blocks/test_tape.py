"""Hooks: what a tape records, when it refuses, and that it goes away."""

from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig
from torch import nn
from transformers import LongformerConfig, LongformerForSequenceClassification

from posthoc_bhpeft.blocks import Observation, discover, observing
from posthoc_bhpeft.blocks.backward import ends
from posthoc_bhpeft.blocks.tape import concatenate
from posthoc_bhpeft.errors import DeadBlockError, ModelError
from tests.contracts import any_direction, check_block, observations, seen_by
from tests.hybrid.families import tiny_batch
from tests.models import Pooled, hybrid, linear, mlp, pairs, seeded, wrap
from tests.oracles import per_sample


def test_per_sample_gradients_of_a_net_without_positions():
    model = mlp(3, 4, 4, 2)
    for block in discover(model):
        check_block(model, block, pairs((5, 3), 2)[0])


def test_positions_are_summed_inside_each_row():
    model = Pooled(linear(3, 4, bias=True), linear(4, 2, bias=True))
    batch = pairs((5, 6, 3), 2)[0]
    for block in discover(model):
        check_block(model, block, batch)
    seen = observations(model, discover(model), batch, any_direction(model, batch))
    assert seen["body.weight"].rows.shape == (5, 6, 4)
    assert seen["head.weight"].rows.shape == (5, 1, 4 - 2)


class Flattened(nn.Module):
    """Rows and positions on one axis inside, as in OPT's feed-forward."""

    def __init__(self):
        super().__init__()
        self.body, self.head = linear(3, 4), linear(4, 2)

    def forward(self, x):
        flat = self.body(x.reshape(-1, 3)).tanh()
        return self.head(flat.reshape(len(x), -1, 4).mean(1))


def test_a_module_that_sees_rows_and_positions_on_one_axis():
    model = Flattened()
    for block in discover(model):
        check_block(model, block, pairs((5, 6, 3), 2)[0])


class PositionsFirst(nn.Module):
    """`(T, N, d)` inside, as in Longformer's attention and in XLNet."""

    def __init__(self):
        super().__init__()
        self.body, self.head = linear(3, 4, bias=True), linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x.transpose(0, 1)).tanh().mean(0))


@pytest.mark.parametrize("positions", [2, 6, 10])
def test_a_module_that_sees_positions_first(positions):
    model = PositionsFirst()
    for block in discover(model):
        check_block(model, block, pairs((5, positions, 3), 2)[0])


def test_longformer():
    config = LongformerConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        attention_window=4,
        max_position_embeddings=40,
    )
    with torch.random.fork_rng(devices=[]):
        model = LongformerForSequenceClassification(config).double()
    names = ["query", "value"]
    model = wrap(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=names))
    batch = {"input_ids": torch.randint(3, 50, (4, 8), generator=seeded())}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    for block in discover(model):
        if "layer.0" in block.name:
            check_block(model, block, batch)


class Mixing(nn.Module):
    """A layer that sees one row for the whole batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = linear(3, 4), linear(4, 2)

    def forward(self, x):
        return self.head(x @ self.body.weight.T + self.body(x.mean(0, keepdim=True)))


def test_a_module_that_mixes_rows_is_refused():
    model = Mixing()
    batch = pairs((5, 3), 2)[0]
    with pytest.raises(ModelError, match="mixes rows"):
        observations(model, discover(model), batch, any_direction(model, batch))


def test_each_row_may_have_its_own_output_direction():
    model = mlp(3, 4, 3)
    blocks, batch = discover(model), pairs((3, 3), 3)[0]
    direction = torch.eye(3, dtype=torch.float64)  # row n looks at output n
    seen = observations(model, blocks, batch, direction)
    exact = per_sample(model, blocks, model(batch[0]).diagonal())
    for name, observation in seen.items():
        assert torch.allclose(observation.gradient(), exact[name])


def test_one_forward_pass_serves_many_directions():
    model = mlp(3, 4, 3)
    blocks, batch = discover(model), pairs((4, 3), 3)[0]
    with observing(model, blocks) as tape:
        outputs = model(batch[0])
        for index in range(3):
            direction = torch.zeros(4, 3, dtype=torch.float64)
            direction[:, index] = 1
            exact = per_sample(model, blocks, outputs[:, index])
            for name, seen in seen_by(tape, outputs, direction, retain=True).items():
                assert torch.allclose(seen.gradient(), exact[name])


def test_a_second_forward_pass_replaces_the_first():
    model = mlp(3, 4, 3)
    blocks, (first, second) = discover(model), pairs((4, 3), 3)
    direction = any_direction(model, first)
    with observing(model, blocks) as tape:
        model(first[0])
        outputs = model(second[0])
        again = seen_by(tape, outputs, direction)
    once = observations(model, blocks, second, direction)
    assert all(torch.equal(s.gradient(), once[name].gradient()) for name, s in again.items())


def test_every_block_is_seen_once_in_whatever_order_they_are_given():
    model, batch = hybrid(), tiny_batch(hybrid())
    blocks, direction = discover(model), any_direction(model, batch)
    one = observations(model, blocks, batch, direction)
    other = observations(model, tuple(reversed(blocks)), batch, direction)
    assert one.keys() == other.keys() == {block.name for block in blocks}
    assert all(torch.equal(one[name].rows, other[name].rows) for name in one)


def test_a_gradient_is_handed_on_while_the_backward_pass_is_still_above_the_next():
    reached = []
    model = nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 4), nn.Tanh(), linear(4, 3))

    def watch(name, output):
        output.grad_fn.register_prehook(lambda _: reached.append(name))

    for index in (1, 3):
        name = f"tanh {index}"
        model[index].register_forward_hook(lambda _, __, output, n=name: watch(n, output))
    with observing(model, discover(model)) as tape:
        outputs = model(pairs((4, 3), 3)[0][0])
        tape.observe(outputs, torch.ones_like(outputs), lambda b, _: reached.append(b.module))
    assert reached == ["4", "tanh 3", "2", "tanh 1", "0"]


def test_only_the_lowest_places_are_asked_of_autograd():
    one, two = (torch.ones(2, requires_grad=True) for _ in range(2))
    low, beside = one * 2, two * 3
    high = (low + beside).tanh()
    top = high * high
    nodes = [tensor.grad_fn for tensor in (top, high, low, beside)]
    assert set(ends(nodes)) == {low.grad_fn, beside.grad_fn}
    assert ends([top.grad_fn]) == [top.grad_fn]


def test_an_error_of_who_is_shown_a_gradient_stops_the_pass():
    class Refused(Exception):
        pass

    def refuse(block, observation):
        raise Refused(block.name)

    model, batch = mlp(3, 4, 3), pairs((4, 3), 3)[0]
    with observing(model, discover(model)) as tape:
        outputs = model(batch[0])
        with pytest.raises(Refused):
            tape.observe(outputs, torch.ones_like(outputs), refuse)
        # No hook stays behind: the next pass shows whom it is told to.
        outputs = model(batch[0])
        assert seen_by(tape, outputs, torch.ones_like(outputs)).keys() == {
            block.name for block in discover(model)
        }


def test_calls_of_a_shared_layer_lie_side_by_side():
    shared = linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    batch = pairs((4, 3), 3)[0]
    (seen,) = observations(model, discover(model), batch, any_direction(model, batch)).values()
    assert seen.rows.shape == (4, 2, 3)
    check_block(model, discover(model)[0], batch)
    assert concatenate([seen]) is seen


def test_calls_of_which_one_has_no_sides_have_none():
    sides = Observation(torch.ones(2, 3, 4), torch.ones(2, 3, 5))
    gradient = Observation.of_gradient(torch.ones(2, 4, 5))
    assert concatenate([sides, sides]).factored
    assert not concatenate([sides, gradient]).factored
    assert not concatenate([gradient, gradient]).factored


class AddsInPlace(nn.Module):
    """Changes what its layer read."""

    def __init__(self, bias=False):
        super().__init__()
        self.body, self.head = linear(3, 3, bias=bias), linear(3, 2)

    def forward(self, x):
        x = x * 1.0
        x += self.body(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["body"], feedforward_modules=[]),
        IA3Config(target_modules=["body"], feedforward_modules=["body"]),
        VeraConfig(target_modules=["body"], r=2),
    ],
    ids=["IA3", "IA3 on inputs", "VeRA"],
)
def test_an_input_that_was_changed_since_is_refused(config):
    """Autograd does not mind: it keeps no input of these layers."""
    model, batch = wrap(AddsInPlace(), config), pairs((4, 5, 3), 2)[0]
    with pytest.raises(ModelError, match=r"'base_model\.model\.body' read was changed in place"):
        observations(model, discover(model), batch, torch.ones(4, 2))


def test_a_bias_reads_no_input_that_could_have_changed():
    model = AddsInPlace(bias=True)
    model.body.weight.requires_grad_(False)
    for block in discover(model):
        check_block(model, block, pairs((4, 5, 3), 2)[0])


def test_inputs_made_in_inference_mode_will_do():
    """They keep no count of their changes, and cannot be changed outside of it."""
    model = Pooled(linear(3, 3), linear(3, 2))
    model = wrap(model, IA3Config(target_modules=["body"], feedforward_modules=[]))
    (inputs, labels), direction = pairs((4, 5, 3), 2)[0], torch.ones(4, 2)
    with torch.inference_mode():
        made = inputs.clone()
    one, other = (
        observations(model, discover(model), (x, labels), direction) for x in (inputs, made)
    )
    assert all(torch.equal(seen.gradient(), other[name].gradient()) for name, seen in one.items())


def test_half_precision_gradients_are_widened():
    model = mlp(3, 4, 3).to(torch.bfloat16)
    inputs = torch.randn(4, 3, generator=seeded()).to(torch.bfloat16)
    seen = observations(model, discover(model), inputs, torch.ones(4, 3))
    assert {observation.rows.dtype for observation in seen.values()} == {torch.float32}
    assert {observation.columns.dtype for observation in seen.values()} == {torch.float32}


def test_a_tap_of_the_wrong_shape_is_named():
    model = mlp(3, 4, 2)
    block = replace(discover(model)[0], tap=discover(model)[1].tap)  # a bias's tap on a weight
    with pytest.raises(ModelError, match=r"'0\.weight' has shape \(4, 3\), .* gave \(4, 1\)"):
        observations(model, (block,), pairs((5, 3), 2)[0], torch.ones(5, 2))


# ---------------------------------------------------------------- dead blocks


class Skipping(nn.Module):
    """`unused` is never called, `dropped` is called in vain."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.dropped = linear(3, 2), linear(3, 2), linear(3, 2)

    def forward(self, x):
        self.dropped(x)
        return self.used(x)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [("dropped", r"took no part.*unused"), ("unused", r"do not depend on 'dropped'")],
)
def test_a_dead_module_is_named(frozen, message):
    model = Skipping()
    getattr(model, frozen).requires_grad_(False)
    with pytest.raises(DeadBlockError, match=message):
        observations(model, discover(model), torch.ones(2, 3).double(), torch.ones(2, 2))


def test_a_prefix_that_attention_never_reads_is_named():
    model = hybrid()
    blocks = discover(model)
    for module in model.modules():
        if hasattr(module, "keys_and_values"):
            module.keys_and_values = lambda batch_size: None
    batch = tiny_batch(model)
    with pytest.raises(DeadBlockError, match=r"took no part.*bhpeft_prefix"):
        observations(model, blocks, batch, torch.ones(4, 3))


def test_an_adapter_that_is_not_active_is_named():
    model = hybrid()
    blocks = discover(model)
    model.base_model.disable_adapter_layers()
    with pytest.raises(DeadBlockError, match="took no part"):
        observations(model, blocks, tiny_batch(model), torch.ones(4, 3))


def test_a_forward_pass_without_gradients_is_refused():
    model = mlp(3, 2)
    with (
        observing(model, discover(model)),
        torch.no_grad(),
        pytest.raises(DeadBlockError, match="no_grad"),
    ):
        model(torch.ones(2, 3).double())


def test_no_grad_around_everything_does_no_harm():
    model, batch = mlp(3, 4, 2), pairs((4, 3), 2)[0]
    direction = any_direction(model, batch)
    with torch.no_grad():
        inside = observations(model, discover(model), batch, direction)
        assert not torch.is_grad_enabled()
    outside = observations(model, discover(model), batch, direction)
    for name, seen in inside.items():
        assert torch.equal(seen.gradient(), outside[name].gradient())


def test_inference_mode_is_refused_before_anything_is_hooked():
    model = mlp(3, 2)
    blocks = discover(model)
    with torch.inference_mode(), pytest.raises(ModelError, match="inference_mode"):
        observations(model, blocks, torch.ones(2, 3).double(), torch.ones(2, 2))
    assert not hooks(model)


def test_blocks_of_another_model_are_refused():
    with (
        pytest.raises(ModelError, match="another model"),
        observing(mlp(3, 2), discover(hybrid())),
    ):
        pass


# ---------------------------------------------------------------- no trace


def hooks(model):
    return [
        hook
        for module in model.modules()
        for registry in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        for hook in registry
    ]


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = mlp(3, 4, 2)
    blocks = discover(model)
    with observing(model, blocks):
        assert len(hooks(model)) == 3  # two layers, and the start of a forward pass
    assert not hooks(model)
    with pytest.raises(ZeroDivisionError), observing(model, blocks):
        _ = 1 / 0
    assert not hooks(model)


def test_observing_leaves_no_gradient_behind():
    model, batch = mlp(3, 4, 2), pairs((4, 3), 2)[0]
    observations(model, discover(model), batch, any_direction(model, batch))
    assert all(parameter.grad is None for parameter in model.parameters())
    model[0].weight.grad = kept = torch.ones_like(model[0].weight)
    observations(model, discover(model), batch, any_direction(model, batch))
    assert model[0].weight.grad is kept
    assert bool((kept == 1).all())
