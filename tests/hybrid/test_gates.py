"""Gates: one scalar an input, blind to padding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModel

from posthoc_bhpeft.errors import ConfigError, HybridError
from posthoc_bhpeft.hybrid import HybridConfig
from posthoc_bhpeft.hybrid.gates import ENCODER, TokenMask
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


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_padding_does_not_matter_with_gates(name, placement):
    model = live_hybrid(name, gates=True, adapter_placement=placement)
    batch = tiny_batch(model)
    torch.testing.assert_close(
        logits(model, batch), logits_row_by_row(model, batch), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", families())
def test_every_gate_has_a_gradient(name):
    model = live_hybrid(name, gates=True)
    grads = gradients(model, tiny_batch(model))
    gates = {n: g for n, g in grads.items() if "bhpeft_gate" in n}
    kinds = {n.split("bhpeft_gate_")[1].split(".")[0] for n in gates}
    assert kinds >= {"lora", "adapter"}
    assert min(g.abs().max() for g in gates.values()) > 0


def test_gates_are_plain_linear_modules():
    model = fresh_hybrid("bert", gates=True)
    for name, module in model.named_modules():
        if "bhpeft_gate_" in name and name.endswith(".default"):
            assert type(module) is nn.Linear


def test_gate_is_the_masked_mean_of_sigmoids():
    tokens = TokenMask()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    tokens(tiny_model("bert"), (), {"input_ids": mask, "attention_mask": mask})
    values = torch.tensor([[[0.2], [0.4], [0.9]], [[0.5], [0.1], [0.1]]])
    expected = torch.tensor([0.3, 0.5]).view(2, 1, 1)
    torch.testing.assert_close(tokens.average(values, ENCODER), expected)


def test_closed_gates_give_the_base_model():
    model = live_hybrid("bert", gates=True, num_virtual_tokens=0)
    for name, parameter in model.named_parameters():
        if "bhpeft_gate" in name:
            parameter.data.fill_(-1e4 if name.endswith("bias") else 0.0)
        elif "modules_to_save" in name:  # the head moved too
            original = name.replace("modules_to_save.default", "original_module")
            parameter.data.copy_(dict(model.named_parameters())[original])
    batch = tiny_batch(model)
    torch.testing.assert_close(logits(model, batch), logits(tiny_model("bert"), batch))


def test_masks_given_by_position_are_found():
    model = live_hybrid("bert", gates=True)
    batch = tiny_batch(model)
    base = model.get_base_model()
    with torch.no_grad():
        by_position = base(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.equal(by_position, logits(model, batch))


def test_without_a_mask_all_tokens_count():
    model = live_hybrid("bert", gates=True)
    batch = tiny_batch(model, padding=False)
    with torch.no_grad():
        unmasked = model(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(unmasked, logits(model, batch))


def test_gates_with_gradient_checkpointing():
    model = live_hybrid("bert", gates=True)
    batch = tiny_batch(model)
    plain = gradients(model, batch)
    model.get_base_model().gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


def test_copies_and_pickles_leave_the_masks_behind():
    model = live_hybrid("bert", gates=True)
    batch = tiny_batch(model)
    before = logits(model, batch)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        hook = next(iter(twin.get_base_model()._forward_pre_hooks.values()))
        assert isinstance(hook, TokenMask)
        assert hook._masks == {}
        assert torch.equal(logits(twin, batch), before)


def test_second_adapter_with_gates_on_a_model_without():
    model = live_hybrid("bert")
    batch = tiny_batch(model)
    first = logits(model, batch)
    model.add_adapter("gated", small_config("bert", gates=True))
    model.set_adapter("gated")
    enliven(model)
    torch.testing.assert_close(
        logits(model, batch), logits_row_by_row(model, batch), rtol=0, atol=1e-12
    )
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)


def test_unfitting_mask_is_refused():
    model = live_hybrid("bert", gates=True)
    batch = tiny_batch(model, labels=False)
    batch["attention_mask"] = batch["attention_mask"][:, None, None, :].bool()
    with pytest.raises(HybridError, match="2-D"):
        model(**batch)


def test_language_modelling_with_gates_is_refused():
    with pytest.raises(ConfigError, match="tokens after it"):
        HybridConfig(task_type="CAUSAL_LM", gates=True)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_decoder_has_its_own_mask(name):
    config = tiny_config(name)
    torch.manual_seed(0)
    base = AutoModel.from_config(config).double()
    settings = {"task_type": "FEATURE_EXTRACTION", "gates": True}
    model = get_peft_model(base, small_config(name, **settings)).eval()
    enliven(model)
    text = tiny_batch(model, labels=False)
    answer = tiny_batch(model, positions=6, labels=False, seed=1)
    both = {**text, **{f"decoder_{key}": value for key, value in answer.items()}}
    alone = [
        model(**{k: v[row : row + 1, : _real(both, k, row)] for k, v in both.items()})
        for row in range(4)
    ]
    together = model(**both).last_hidden_state
    for row, one in enumerate(alone):
        length = one.last_hidden_state.shape[1]
        torch.testing.assert_close(together[row : row + 1, :length], one.last_hidden_state)


def _real(batch, key, row):
    mask = "decoder_attention_mask" if key.startswith("decoder") else "attention_mask"
    return int(batch[mask][row].sum())
