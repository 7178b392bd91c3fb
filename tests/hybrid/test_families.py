"""What must hold for every family of models."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from posthoc_bhpeft.errors import PrefixUnsupportedError
from posthoc_bhpeft.hybrid import HybridConfig, PrefixKV
from tests.hybrid.families import WITHOUT_PREFIX, families, tiny_batch, tiny_model
from tests.hybrid.tools import (
    fresh_hybrid,
    gradients,
    live_hybrid,
    logits,
    logits_row_by_row,
    trainable,
)

ALL = tuple(families())
WITH_PREFIX = tuple(name for name in ALL if name not in WITHOUT_PREFIX)

# Plain-Python attention takes its softmax in float32.
TOLERANCE = {"gemma2": 1e-6}


@pytest.mark.parametrize("name", ALL)
def test_starts_as_the_base_model(name):
    base = tiny_model(name)
    batch = tiny_batch(base)
    model = fresh_hybrid(name, num_virtual_tokens=0)
    torch.testing.assert_close(logits(model, batch), logits(base, batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_every_trainable_tensor_has_a_gradient(name):
    model = live_hybrid(name)
    dead = [n for n, g in gradients(model, tiny_batch(model)).items() if g.abs().max() == 0]
    assert dead == []


@pytest.mark.parametrize("name", ALL)
def test_frozen_outside_the_parts_and_the_head(name):
    model = fresh_hybrid(name)
    backbone = f"base_model.model.{model.get_base_model().base_model_prefix}."
    names = [n for n, _ in model.named_parameters() if "original_module" not in n]
    head = [n for n in names if not n.startswith(backbone)]
    assert head
    assert set(trainable(model)) == {n for n in names if "bhpeft_" in n} | set(head)


@pytest.mark.parametrize("name", ALL)
def test_padding_does_not_matter(name):
    model = live_hybrid(name)
    batch = tiny_batch(model)
    torch.testing.assert_close(
        logits(model, batch),
        logits_row_by_row(model, batch),
        rtol=0,
        atol=TOLERANCE.get(name, 1e-13),
    )


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_gives_the_same_logits(name, tmp_path):
    model = live_hybrid(name)
    batch = tiny_batch(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize("name", ALL)
def test_disabled_is_the_base_model(name):
    model = live_hybrid(name)
    batch = tiny_batch(model)
    with model.disable_adapter():
        off = logits(model, batch)
    assert torch.equal(off, logits(tiny_model(name), batch))


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_every_prefix_is_live(name):
    model = live_hybrid(name)
    batch = tiny_batch(model)
    before = logits(model, batch)
    prefixes = [module for module in model.modules() if isinstance(module, PrefixKV)]
    assert prefixes
    for prefix in prefixes:
        for half in prefix.weight.data:  # keys, then values
            saved = half.clone()
            half.neg_()
            assert (logits(model, batch) - before).abs().max() > 1e-8
            half.copy_(saved)


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_prefix_comes_in_one_view_for_each_input(name):
    model = live_hybrid(name)
    prefix = next(module for module in model.modules() if isinstance(module, PrefixKV))
    seen: list[torch.Tensor] = []
    prefix.register_forward_hook(lambda module, args, output: seen.append(output))
    logits(model, tiny_batch(model, rows=4))
    assert {tuple(view.shape) for view in seen} == {(4, *prefix.weight.shape)}


@pytest.mark.parametrize("name", WITHOUT_PREFIX)
def test_says_why_there_is_no_prefix_and_what_to_do(name):
    with pytest.raises(PrefixUnsupportedError, match=r"attention interface.*num_virtual_tokens=0"):
        fresh_hybrid(name, num_virtual_tokens=8)


@pytest.mark.parametrize("name", WITHOUT_PREFIX)
def test_refusal_leaves_the_model_as_it_was(name):
    base = tiny_model(name)
    names = [n for n, _ in base.named_modules()]
    with pytest.raises(PrefixUnsupportedError):
        get_peft_model(base, HybridConfig(task_type="SEQ_CLS"))
    assert [n for n, _ in base.named_modules()] == names
    assert all(p.requires_grad for p in base.parameters())
