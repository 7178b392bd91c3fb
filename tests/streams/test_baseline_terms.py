"""The terms that the replay-free baselines add to the loss, by hand on tiny float64 models."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.streams.methods.distance import DistancePenalty, L2Anchor
from posthoc_bhpeft.streams.methods.lwf import Distillation, LwF, output_groups
from posthoc_bhpeft.streams.methods.olora import (
    OrthogonalityPenalty,
    OrthogonalLoRA,
    Overlap,
    check_lora_alone,
    fold,
    lora_modules,
    restart,
)
from posthoc_bhpeft.streams.rounds import Heads, LabelSpace, Round
from posthoc_bhpeft.training import TrainingSettings
from tests.hybrid.families import tiny_batch
from tests.hybrid.tools import enliven, live_hybrid, logits, small_config, trainable
from tests.models import linear, lora, seeded

LORA_ONLY = {"bottleneck_size": 0, "num_virtual_tokens": 0}


def lora_model(family="bert", **settings):
    return live_hybrid(family, **{**LORA_ONLY, **settings}).double()


# ------------------------------------------------------------------ L2


def test_distance_and_its_gradient_by_hand():
    model = linear(3, 2, bias=True)
    anchor = {name: p.detach() + 0.5 for name, p in model.named_parameters()}
    penalty = DistancePenalty(anchor, 4.0).penalty(model)
    penalty.backward()
    assert_close(penalty.item(), 0.5 * 4.0 * 8 * 0.25)
    for parameter in model.parameters():
        assert_close(parameter.grad, torch.full_like(parameter, 4.0 * -0.5))


def test_rows_that_the_anchor_lacks_are_free():
    model = linear(3, 4, bias=True)
    anchor = {name: torch.zeros_like(p[:2]) for name, p in model.named_parameters()}
    DistancePenalty(anchor, 1.0).penalty(model).backward()
    for parameter in model.parameters():
        assert_close(parameter.grad[:2], parameter.detach()[:2])
        assert not parameter.grad[2:].any()


def test_an_anchor_of_another_model_is_refused():
    penalty = DistancePenalty({"0.weight": torch.zeros(1), "0.bias": torch.zeros(1)}, 1.0)
    with pytest.raises(ModelError, match=r"2 tensors.*'0\.bias'"):
        penalty.penalty(linear(3, 2))


# ------------------------------------------------------------------ LwF


def test_distillation_by_hand():
    now, old = (torch.randn(5, 6, generator=seeded(n)).double() for n in (0, 1))
    groups = ((0, 1), (2, 3, 4))
    expected = torch.zeros(5, dtype=torch.float64)
    for group in groups:
        columns = list(group)
        raised = torch.exp(old[:, columns]) ** (1 / 3)
        target = raised / raised.sum(1, keepdim=True)
        ours = torch.exp(now[:, columns]) ** (1 / 3)
        expected -= (target * torch.log(ours / ours.sum(1, keepdim=True))).sum(1)
    assert_close(Distillation(groups, 7.0, 3.0)(now, old, ()), 7.0 * expected.mean())


def test_distillation_pulls_nowhere_at_the_old_outputs():
    old = torch.randn(5, 4, generator=seeded()).double()
    now = torch.cat([old + 3.0, torch.randn(5, 2, generator=seeded(1)).double()], 1)
    now.requires_grad_()
    Distillation(((0, 1, 2, 3),), 1.0, 2.0)(now, old, ()).backward()
    assert_close(now.grad, torch.zeros_like(now))


@pytest.mark.parametrize(
    ("heads", "groups"),
    [(Heads.SHARED, ((0, 1, 2, 3),)), (Heads.PER_ROUND, ((0, 1, 2), (5, 6)))],
)
def test_old_outputs_are_those_of_the_rounds_learnt(heads, groups):
    labels = LabelSpace(heads)
    for name, names in {"one": "abc", "two": "ab", "three": "bd"}.items():
        labels = labels.extended(Round(name, TextData((), labels=(), label_names=tuple(names))))
    assert output_groups(labels, ["one", "three"]) == groups
    assert output_groups(labels, []) == ()


# ------------------------------------------------------------------ O-LoRA


def copy_pair(target, source, adapter):
    """Give the pair of `target` the values that `source` has under this adapter name."""
    for part in ("bhpeft_lora_A", "bhpeft_lora_B"):
        values = getattr(source, part)[adapter].state_dict()
        getattr(target, part)["default"].load_state_dict(values)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_folded_is_two_active_adapters(family):
    """gpt2 stores its weights transposed."""
    together, folded = lora_model(family), lora_model(family)
    together.add_adapter("second", small_config(family, **LORA_ONLY))
    for _, module in lora_modules(together):
        # Not for the whole model: peft allows one active adapter where a head is saved along.
        module.set_adapter(["default", "second"])
        enliven(module, seed=5)
    source = dict(lora_modules(together))
    for name, module in lora_modules(folded):
        copy_pair(module, source[name], "default")
        first, second = fold(module)
        assert torch.equal(first, source[name].bhpeft_lora_A["default"].weight)
        assert torch.equal(second, source[name].bhpeft_lora_B["default"].weight)
        copy_pair(module, source[name], "second")
    batch = tiny_batch(folded)
    assert_close(logits(folded, batch), logits(together, batch))
    for _, module in lora_modules(together):
        module.set_adapter("second")
    assert not torch.allclose(logits(folded, batch), logits(together, batch))


def test_a_fold_and_a_restart_leave_the_function_alone():
    model = lora_model()
    batch = tiny_batch(model)
    before = logits(model, batch)
    with model.disable_adapter():
        bare = logits(model, batch)
    for _, module in lora_modules(model):
        old, _ = fold(module)
        restart(module, seeded())
        fresh = module.bhpeft_lora_A["default"].weight
        assert not torch.equal(fresh, old)
        assert fresh.abs().max() <= fresh.shape[1] ** -0.5
        assert not module.bhpeft_lora_B["default"].weight.any()
    assert_close(logits(model, batch), before)
    assert not torch.allclose(before, bare)


@pytest.mark.parametrize("overlap", list(Overlap))
def test_orthogonality_by_hand(overlap):
    model = lora_model()
    modules = dict(lora_modules(model))
    past = {
        name: torch.randn(6, module.bhpeft_lora_A["default"].weight.shape[1], generator=seeded())
        for name, module in modules.items()
    }
    expected = 0.0
    for name, module in modules.items():
        new = module.bhpeft_lora_A["default"].weight.detach()
        for first in past[name].double():
            for second in new:
                entry = float(first @ second)
                expected += entry**2 if overlap is Overlap.SQUARED else abs(entry)
    penalty = OrthogonalityPenalty(past, 3.0, overlap).penalty(model)
    assert_close(penalty.item(), 3.0 * expected)
    penalty.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {name for name in trainable(model) if "lora_A" in name}


@pytest.mark.parametrize("overlap", list(Overlap))
def test_orthogonal_pairs_cost_nothing(overlap):
    model = lora_model()
    past = {}
    for name, module in lora_modules(model):
        new = module.bhpeft_lora_A["default"].weight.detach()
        basis, _ = torch.linalg.qr(new.T, mode="complete")
        past[name] = basis[:, len(new) :].T
    assert OrthogonalityPenalty(past, 1.0, overlap).penalty(model).item() < 1e-9


@pytest.mark.parametrize(
    "parts", [{"bottleneck_size": 3}, {"num_virtual_tokens": 3}, {"gates": True}]
)
def test_another_part_than_lora_is_refused(parts):
    with pytest.raises(ConfigError, match="defined for LoRA alone"):
        check_lora_alone(live_hybrid("bert", **{**LORA_ONLY, **parts}))


def test_lora_of_another_tuner_and_a_plain_model_are_refused():
    for model in (lora(), linear(2, 2)):
        with pytest.raises(ConfigError, match="settings_for"):
            check_lora_alone(model)
    check_lora_alone(lora_model())


def test_settings_for_keep_everything_but_the_parts():
    settings = OrthogonalLoRA.settings_for(TrainingSettings(epochs=3, rank=5, seed=7))
    assert settings == TrainingSettings(epochs=3, rank=5, seed=7, peft="lora")
    check_lora_alone(live_hybrid("bert", **LORA_ONLY))


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (LwF, {"weight": -1.0}),
        (LwF, {"temperature": 0.0}),
        (LwF, {"weight": float("nan")}),
        (L2Anchor, {"weight": -1.0}),
        (OrthogonalLoRA, {"weight": -1.0}),
    ],
)
def test_values_out_of_range(method, values):
    with pytest.raises(ConfigError, match="0 or more"):
        method(**values)
