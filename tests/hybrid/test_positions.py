"""Positions that count from the prefix's end: peft's own PrefixTuning is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from posthoc_bhpeft.errors import ConfigError, TargetError
from posthoc_bhpeft.hybrid import PrefixKV
from tests.hybrid.families import POSITIONS, tiny_batch, tiny_config, tiny_model
from tests.hybrid.tools import enliven, fresh_hybrid, live_hybrid, logits, small_config

SHIFTED = {"r": 0, "bottleneck_size": 0, "shift_positions": True, "modules_to_save": None}

#: Those that peft's PrefixTuning runs on.
STOCK = [
    *("bert", "roberta", "electra", "llama", "qwen2"),
    *("mistral", "gemma2", "phi3", "gpt2", "opt", "gpt_neox"),
]


def prefixes(model: nn.Module) -> list[PrefixKV]:
    return [module for module in model.modules() if isinstance(module, PrefixKV)]


@pytest.mark.parametrize("name", STOCK)
def test_equals_the_prefix_of_peft(name):
    # Without a sliding window: a cache shifts the window, a prefix is seen by every position.
    base = {"sliding_window": None} if name == "mistral" else {}
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    stock = get_peft_model(tiny_model(name, **base), config).double().eval()
    enliven(stock)
    ours = fresh_hybrid(name, base=base, **SHIFTED)
    places = prefixes(ours)
    stored = stock.prompt_encoder["default"].embedding.weight.detach()
    heads, size = places[0].weight.shape[1], places[0].weight.shape[3]
    pairs = stored.view(3, len(places), 2, heads, size).permute(1, 2, 3, 0, 4)
    with torch.no_grad():
        for place, pair in zip(places, pairs, strict=True):
            place.weight.copy_(pair)
    head = stock.get_base_model()._modules[stock.cls_layer_name]
    mine = ours.get_base_model()._modules[stock.cls_layer_name]
    mine.modules_to_save["default"].load_state_dict(head.modules_to_save["default"].state_dict())
    batch = tiny_batch(ours)
    assert torch.equal(logits(ours, batch), logits(stock, batch))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_taken_off_and_switched_off_it_is_the_base_again(name):
    base = tiny_model(name)
    batch = tiny_batch(base)
    before = logits(base, batch)
    model = live_hybrid(name, **{**SHIFTED, "task_type": "FEATURE_EXTRACTION"})
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), before)
    assert not torch.equal(logits(model, batch), before)
    bare = model.unload()
    assert torch.equal(logits(bare, batch), before)
    assert list(bare.state_dict()) == list(base.state_dict())


def test_follows_the_active_adapter():
    model = live_hybrid("bert", **SHIFTED)
    batch = tiny_batch(model)
    shifted = logits(model, batch)
    other = small_config("bert", r=0, bottleneck_size=0, num_virtual_tokens=2)
    model.add_adapter("plain", other)
    assert torch.equal(logits(model, batch), shifted)
    model.set_adapter("plain")
    positions = model.get_base_model().bert.embeddings.position_embeddings
    ids = torch.arange(5)
    assert torch.equal(positions(ids), positions.base_layer.weight[ids])
    model.set_adapter("default")
    assert torch.equal(positions(ids), positions.base_layer.weight[ids + 3])
    model.delete_adapter("default")
    assert torch.equal(positions(ids), positions.base_layer.weight[ids])


def test_saved_and_loaded(tmp_path):
    model = live_hybrid("roberta", **SHIFTED)
    batch = tiny_batch(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("roberta"), tmp_path).eval()
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert not [name for name in model.state_dict() if "shift" in name]


def test_a_cache_changes_nothing():
    base = AutoModelForCausalLM.from_config(tiny_config("gpt2")).double().eval()
    config = small_config("gpt2", task_type="CAUSAL_LM", shift_positions=True)
    model = get_peft_model(base, config).eval()
    enliven(model)
    ids = tiny_batch(model, padding=False, labels=False)["input_ids"][:2]
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    with_cache = model.generate(input_ids=ids, attention_mask=mask, **settings)
    without = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(with_cache, without)


def test_a_text_longer_than_what_is_left_is_refused():
    model = live_hybrid("bert", **SHIFTED)
    batch = tiny_batch(model, positions=POSITIONS - 3, padding=False)
    assert logits(model, batch).isfinite().all()
    with pytest.raises(IndexError):
        logits(model, tiny_batch(model, positions=POSITIONS - 2, padding=False))


def test_the_config_wants_a_prefix():
    with pytest.raises(ConfigError, match="num_virtual_tokens=0"):
        small_config("bert", num_virtual_tokens=0, shift_positions=True)


def test_models_without_positions_are_refused():
    base = tiny_model("t5")
    names = list(copy.deepcopy(base).state_dict())
    with pytest.raises(TargetError, match="no rotary angles of a known name"):
        get_peft_model(base, small_config("t5", shift_positions=True))
    assert list(base.state_dict()) == names
