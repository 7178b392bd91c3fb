"""The prefix against independent ways to compute it, and its effect on the rest of the model."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, DynamicCache

from posthoc_bhpeft.errors import PrefixUnsupportedError
from posthoc_bhpeft.hybrid import PrefixKV
from posthoc_bhpeft.hybrid.attention import prefix_attention
from tests.hybrid.families import EAGER_ONLY, families, tiny_batch, tiny_config, tiny_model
from tests.hybrid.tools import enliven, fresh_hybrid, live_hybrid, logits, small_config

PREFIX_ONLY = {"r": 0, "bottleneck_size": 0}


def prefixes(model: PeftModel) -> list[PrefixKV]:
    return [module for module in model.modules() if isinstance(module, PrefixKV)]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox"])
def test_equals_a_key_value_cache_with_the_same_content(name):
    # Without a sliding window: a cache shifts the window, a prefix is seen by every position.
    base = {"sliding_window": None} if name == "mistral" else {}
    model = live_hybrid(name, base=base, **PREFIX_ONLY)
    batch = tiny_batch(model, padding=False)
    ids, rows = batch["input_ids"], batch["input_ids"].shape[0]
    cache = DynamicCache()
    for layer, prefix in enumerate(prefixes(model)):
        pair = prefix.weight.detach().unsqueeze(1).expand(-1, rows, -1, -1, -1)
        cache.update(pair[0].clone(), pair[1].clone(), layer)
    tokens = prefixes(model)[0].weight.shape[2]
    positions = torch.arange(ids.shape[1]).expand(rows, -1)
    mask = torch.ones(rows, ids.shape[1] + tokens, dtype=torch.long)
    ours = logits(model, batch)
    for module in model.modules():
        if hasattr(module, "hybrid_prefix"):
            module.hybrid_prefix.enable_adapters(False)
    with torch.no_grad():
        theirs = model.get_base_model()(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_equals_attention_written_out():
    model = live_hybrid("bert", **PREFIX_ONLY)
    attention = model.get_base_model().bert.encoder.layer[0].attention.self
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    attention.register_forward_hook(lambda module, args, out: seen.append((args[0], out[0])))
    batch = tiny_batch(model)
    logits(model, batch)
    hidden, output = seen[0]
    rows, positions, _ = hidden.shape

    def heads(linear: nn.Module) -> torch.Tensor:
        return linear(hidden).view(rows, positions, 4, 8).transpose(1, 2)

    prefix = attention.hybrid_prefix.bhpeft_prefix["default"].weight
    keys = torch.cat([prefix[0].expand(rows, -1, -1, -1), heads(attention.key)], 2)
    values = torch.cat([prefix[1].expand(rows, -1, -1, -1), heads(attention.value)], 2)
    scores = heads(attention.query) @ keys.transpose(-1, -2) / math.sqrt(8)
    seen_by_all = functional.pad(batch["attention_mask"], (prefix.shape[2], 0), value=1).bool()
    scores = scores.masked_fill(~seen_by_all[:, None, None], -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", [name for name in families() if name not in EAGER_ONLY])
def test_plain_and_fused_attention_agree(name):
    fused = live_hybrid(name)
    plain = live_hybrid(name, base={"attention": "eager"})
    batch = tiny_batch(fused)
    torch.testing.assert_close(logits(fused, batch), logits(plain, batch), rtol=0, atol=1e-5)


def test_follows_a_later_choice_of_attention():
    model = live_hybrid("bert")
    batch = tiny_batch(model)
    before = logits(model, batch)
    model.get_base_model().set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-5)
    assert model.get_base_model().config._attn_implementation == "eager"


def test_causal_without_a_mask_stays_causal():
    model = live_hybrid("llama")
    ids = tiny_batch(model, padding=False)["input_ids"]
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 7) % 50 + 3
    decoder = model.get_base_model().model
    with torch.no_grad():
        one, other = decoder(ids).last_hidden_state, decoder(changed).last_hidden_state
    assert torch.equal(one[:, :-1], other[:, :-1])
    assert not torch.equal(one[:, -1], other[:, -1])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_on_the_left_does_not_matter_with_positions(name):
    model = live_hybrid(name)
    batch = tiny_batch(model, labels=False)
    shifts = (1 - batch["attention_mask"]).sum(1).tolist()
    left = {
        key: torch.stack([row.roll(shift) for row, shift in zip(value, shifts, strict=True)])
        for key, value in batch.items()
    }
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(logits(model, left), logits(model, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5", "bart"])
def test_generates_the_same_with_and_without_a_cache(name):
    config = tiny_config(name)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    task = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(auto.from_config(config), small_config(name, task_type=task)).eval()
    enliven(model, spread=0.5)
    batch = tiny_batch(model, padding=False, labels=False)
    runs = [
        model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=on)
        for on in (True, False)
    ]
    assert torch.equal(runs[0], runs[1])


CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "prefilled in chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_every_cache_gives_the_logits_of_none(name, cache, side):
    """A static cache has room beyond the text, and mistral a window shorter than it."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config(name))
    model = get_peft_model(base, small_config(name, task_type="CAUSAL_LM")).eval()
    enliven(model, spread=0.5)
    batch = tiny_batch(model, padding=False, labels=False)
    if side == "left":
        batch["attention_mask"][0, :2] = 0

    def found(**settings):
        steps = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        told = {"output_logits": True, "return_dict_in_generate": True}
        return torch.stack(model.generate(**batch, **steps, **told, **settings).logits)

    expected = found(use_cache=False)
    torch.testing.assert_close(found(**cache), expected, rtol=0, atol=1e-4)


def test_model_config_is_untouched(tmp_path):
    base = tiny_model("bert")
    before = base.config.to_dict()
    model = live_hybrid("bert")
    config = model.get_base_model().config
    assert config.to_dict() == before
    assert copy.deepcopy(config).to_dict() == before
    assert config._attn_implementation == "sdpa"
    config.save_pretrained(tmp_path)
    assert "bhpeft" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_attention_config_view_is_live():
    model = fresh_hybrid("bert")
    config = model.get_base_model().config
    view = model.get_base_model().bert.encoder.layer[0].attention.self.config
    config.something_new = 3
    assert view.something_new == 3
    view.other = 4
    assert config.other == 4


def test_packed_rows_are_refused():
    attention = live_hybrid("llama").get_base_model().model.layers[0].self_attn
    x = torch.zeros(1, 4, 3, 8, dtype=torch.float64)
    with pytest.raises(PrefixUnsupportedError, match="packed"):
        prefix_attention(attention, x, x[:, :2], x[:, :2], None, cu_seq_lens_q=torch.tensor([0, 3]))


def test_block_masks_are_refused():
    attention = live_hybrid("llama").get_base_model().model.layers[0].self_attn
    x = torch.zeros(1, 4, 3, 8, dtype=torch.float64)
    with pytest.raises(PrefixUnsupportedError, match="flex attention"):
        prefix_attention(attention, x, x[:, :2], x[:, :2], object())


def test_module_that_is_no_attention_is_refused():
    with pytest.raises(PrefixUnsupportedError, match="BertLayer"):
        fresh_hybrid("bert", prefix_target_modules=["layer.0"])
