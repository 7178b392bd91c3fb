"""The parts compute what their formulas say."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional

from posthoc_bhpeft.errors import HybridError, TargetError
from posthoc_bhpeft.hybrid import AdapterPlacement
from tests.hybrid.families import families, tiny_batch, tiny_config, tiny_model
from tests.hybrid.tools import (
    enliven,
    fresh_hybrid,
    gradients,
    live_hybrid,
    logits,
    logits_row_by_row,
    small_config,
)

ADAPTER_ONLY = {"r": 0, "num_virtual_tokens": 0}
LORA_ONLY = {"bottleneck_size": 0, "num_virtual_tokens": 0}
PREFIX_ONLY = {"r": 0, "bottleneck_size": 0}
POST_LAYERNORM = (
    "bert",
    "roberta",
    "electra",
    "distilbert",
    "albert",
    "bart",
    "deberta_v2",
    "mpnet",
)
PRE_LAYERNORM = tuple(name for name in families() if name not in POST_LAYERNORM)


def bottleneck(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    down, up = layer.bhpeft_adapter_down["default"], layer.bhpeft_adapter_up["default"]
    narrow = functional.gelu(functional.linear(hidden, down.weight, down.bias))
    return functional.linear(narrow, up.weight, up.bias)


def run_and_watch(model: nn.Module, **watched: nn.Module) -> dict[str, tuple[torch.Tensor, ...]]:
    """Input and output of some modules during one forward pass."""
    seen: dict[str, tuple[torch.Tensor, ...]] = {}

    def watch(name):
        return lambda module, args, output: seen.update({name: (args[0], output)})

    handles = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    logits(model, tiny_batch(model))
    for handle in handles:
        handle.remove()
    return seen


def test_lora_is_w_plus_scaled_b_a():
    model = live_hybrid("bert", **LORA_ONLY, lora_alpha=6)
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    x, y = run_and_watch(model, layer=layer)["layer"]
    first, second = layer.bhpeft_lora_A["default"].weight, layer.bhpeft_lora_B["default"].weight
    base = layer.base_layer
    expected = functional.linear(x, base.weight + 3.0 * second @ first, base.bias)
    torch.testing.assert_close(y, expected)


def test_lora_on_conv1d_is_w_plus_scaled_b_a():
    model = live_hybrid("gpt2", **LORA_ONLY, lora_alpha=6)
    layer = model.get_base_model().transformer.h[0].attn.c_attn
    x, y = run_and_watch(model, layer=layer)["layer"]
    first, second = layer.bhpeft_lora_A["default"].weight, layer.bhpeft_lora_B["default"].weight
    base = layer.base_layer
    expected = x @ (base.weight + 3.0 * (second @ first).T) + base.bias
    torch.testing.assert_close(y, expected)


def test_rslora_divides_by_the_root_of_the_rank():
    assert small_config(r=4, lora_alpha=6, use_rslora=True).lora_scaling == pytest.approx(3.0)
    assert small_config(r=4, lora_alpha=6).lora_scaling == pytest.approx(1.5)


def test_sequential_adapter_reads_the_feed_forward_output():
    model = live_hybrid("bert", **ADAPTER_ONLY, adapter_scaling=0.5)
    last = model.get_base_model().bert.encoder.layer[0].output.dense
    seen = run_and_watch(model, last=last, base=last.base_layer)
    y = seen["base"][1]
    torch.testing.assert_close(seen["last"][1], y + 0.5 * bottleneck(last, y))


def test_parallel_adapter_reads_the_feed_forward_input():
    model = live_hybrid("bert", **ADAPTER_ONLY, adapter_placement="parallel", adapter_scaling=0.5)
    layer = model.get_base_model().bert.encoder.layer[0]
    last = layer.output.dense
    seen = run_and_watch(model, first=layer.intermediate.dense, last=last, base=last.base_layer)
    expected = seen["base"][1] + 0.5 * bottleneck(last, seen["first"][0])
    torch.testing.assert_close(seen["last"][1], expected)


def test_post_layernorm_adapter_is_inside_the_add_and_normalise():
    model = live_hybrid("bert", **ADAPTER_ONLY, adapter_placement="post_layernorm")
    norm = model.get_base_model().bert.encoder.layer[0].output.LayerNorm
    z, y = run_and_watch(model, norm=norm)["norm"]
    normalise = norm.base_layer
    torch.testing.assert_close(y, normalise(z + bottleneck(norm, normalise(z))))


@pytest.mark.parametrize("name", families())
def test_parallel_placement_on_every_family(name):
    model = live_hybrid(name, adapter_placement="parallel")
    batch = tiny_batch(model)
    torch.testing.assert_close(
        logits(model, batch), logits_row_by_row(model, batch), rtol=0, atol=1e-6
    )
    assert min(g.abs().max() for g in gradients(model, batch).values()) > 0


@pytest.mark.parametrize("name", POST_LAYERNORM)
def test_post_layernorm_placement_where_blocks_normalise_last(name):
    model = live_hybrid(name, adapter_placement="post_layernorm")
    batch = tiny_batch(model)
    torch.testing.assert_close(
        logits(model, batch), logits_row_by_row(model, batch), rtol=0, atol=1e-13
    )
    assert min(g.abs().max() for g in gradients(model, batch).values()) > 0


@pytest.mark.parametrize("name", PRE_LAYERNORM)
def test_post_layernorm_placement_refused_where_blocks_normalise_first(name):
    with pytest.raises(TargetError, match=r"normalise last.*'sequential' or 'parallel'"):
        fresh_hybrid(name, adapter_placement="post_layernorm")


@pytest.mark.parametrize("settings", [ADAPTER_ONLY, LORA_ONLY, PREFIX_ONLY])
def test_each_part_alone(settings):
    model = live_hybrid("bert", **settings)
    kinds = ("bhpeft_lora_A", "bhpeft_adapter_down", "bhpeft_prefix")
    there = [any(kind in n for n, _ in model.named_parameters()) for kind in kinds]
    expected = [settings.get(k, 1) > 0 for k in ("r", "bottleneck_size", "num_virtual_tokens")]
    assert there == expected
    assert min(g.abs().max() for g in gradients(model, tiny_batch(model)).values()) > 0


def test_placement_may_be_given_as_the_enum():
    model = fresh_hybrid("bert", adapter_placement=AdapterPlacement.PARALLEL)
    assert model.peft_config["default"].adapter_placement is AdapterPlacement.PARALLEL


def test_lora_and_adapter_on_the_same_module():
    model = live_hybrid("llama", lora_target_modules=["down_proj"], adapter_placement="parallel")
    layer = model.get_base_model().model.layers[0].mlp
    seen = run_and_watch(model, first=layer.gate_proj, last=layer.down_proj)
    x, y = seen["last"]
    base = functional.linear(x, layer.down_proj.base_layer.weight)
    delta = layer.down_proj.lora_delta("default")
    expected = base + functional.linear(x, delta) + bottleneck(layer.down_proj, seen["first"][0])
    torch.testing.assert_close(y, expected)


def test_each_dropout_acts_in_training_only():
    for name in ("lora_dropout", "adapter_dropout", "prefix_dropout"):
        config = tiny_config("llama")
        assert config.attention_dropout == 0.0  # Llama itself has no other chance in it
        model = live_hybrid("llama", **{name: 0.5})
        batch = tiny_batch(model)
        assert torch.equal(logits(model, batch), logits(model, batch))
        model.train()
        assert not torch.equal(logits(model, batch), logits(model, batch)), name


def test_parallel_adapter_on_modules_named_by_hand():
    config = small_config(
        r=0,
        num_virtual_tokens=0,
        adapter_placement="parallel",
        adapter_input_modules=["attention.self.query"],
        adapter_target_modules=["attention.output.dense"],
    )
    model = get_peft_model(tiny_model("bert"), config).eval()
    enliven(model)
    attention = model.get_base_model().bert.encoder.layer[1].attention
    last = attention.output.dense
    seen = run_and_watch(model, query=attention.self.query, last=last, base=last.base_layer)
    expected = seen["base"][1] + bottleneck(last, seen["query"][0])
    torch.testing.assert_close(seen["last"][1], expected)


def test_parallel_adapters_sharing_an_input_are_refused():
    with pytest.raises(TargetError, match="exactly one input module of its own"):
        fresh_hybrid(
            "bert",
            adapter_placement="parallel",
            adapter_input_modules=["layer.0.intermediate.dense"],
        )


def test_parallel_adapter_without_its_input_says_what_to_do():
    model = live_hybrid("bert", adapter_placement="parallel")
    last = model.get_base_model().bert.encoder.layer[0].output.dense
    with pytest.raises(HybridError, match="adapter_input_modules"):
        last(torch.zeros(1, 2, 48, dtype=torch.float64))
