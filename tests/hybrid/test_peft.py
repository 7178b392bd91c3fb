"""A hybrid does what peft's users do with every other adapter."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import subprocess
import sys

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from posthoc_bhpeft.errors import NotMergeableError
from posthoc_bhpeft.hybrid import HybridConfig, HybridModel
from posthoc_bhpeft.hybrid.registration import peft_type
from tests.hybrid.families import tiny_batch, tiny_loader, tiny_model
from tests.hybrid.tools import (
    enliven,
    fresh_hybrid,
    gradients,
    live_hybrid,
    logits,
    small_config,
    trainable,
)

LORA_ONLY = {"bottleneck_size": 0, "num_virtual_tokens": 0}
ALL_PARTS = (
    {},
    {"adapter_placement": "parallel", "gates": True},
    {"adapter_placement": "post_layernorm"},
)


@pytest.mark.parametrize("settings", ALL_PARTS)
def test_round_trip_with_every_placement(settings, tmp_path):
    model = live_hybrid("bert", **settings)
    batch = tiny_batch(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_checkpoint_is_safetensors_without_base_weights_or_adapter_names(tmp_path):
    model = live_hybrid("bert", gates=True)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all("bhpeft_" in key or key.startswith("base_model.model.classifier") for key in tensors)
    assert not any("default" in key for key in tensors)
    assert len(tensors) == len(trainable(model))


def test_loads_under_another_name(tmp_path):
    model = live_hybrid("bert", gates=True)
    batch = tiny_batch(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, adapter_name="mine").eval()
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_loads_without_first_allocating(tmp_path):
    model = live_hybrid("bert")
    batch = tiny_batch(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_loaded_for_inference_is_frozen_and_for_training_is_not(tmp_path):
    model = live_hybrid("bert")
    model.save_pretrained(tmp_path)
    assert trainable(PeftModel.from_pretrained(tiny_model("bert"), tmp_path)) == {}
    again = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, is_trainable=True)
    assert trainable(again).keys() == trainable(model).keys()


def test_auto_class_rebuilds_base_and_hybrid(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, small_config("bert")).eval()
    enliven(model)
    model.save_pretrained(tmp_path / "hybrid")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "hybrid", num_labels=3
    )
    batch = tiny_batch(model)
    assert torch.equal(logits(loaded.eval(), batch), logits(model, batch))


def test_saved_config_says_what_was_adapted(tmp_path):
    fresh_hybrid("distilbert").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "BHPEFT"
    assert saved["adapter_placement"] == "sequential"
    assert saved["lora_target_modules"] == ["q_lin", "v_lin"]
    assert set(saved["modules_to_save"]) == {"pre_classifier", "classifier"}
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HybridConfig)
    assert loaded.to_dict() == {**saved, "peft_type": peft_type()}


def test_loading_twice_does_not_grow_the_config(tmp_path):
    fresh_hybrid("bert").save_pretrained(tmp_path / "one")
    for source, target in (("one", "two"), ("two", "three")):
        loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path / source)
        loaded.save_pretrained(tmp_path / target)
    sizes = {
        len(json.loads((tmp_path / name / "adapter_config.json").read_text())["modules_to_save"])
        for name in ("one", "three")
    }
    assert sizes == {1}


@pytest.mark.parametrize("settings", ALL_PARTS)
def test_two_named_adapters_keep_apart(settings, tmp_path):
    model = live_hybrid("bert")
    batch = tiny_batch(model)
    first = logits(model, batch)
    model.add_adapter("second", small_config("bert", r=3, num_virtual_tokens=5, **settings))
    assert torch.equal(logits(model, batch), first)
    assert not any(".second." in name for name in trainable(model))
    model.set_adapter("second")
    enliven(model, seed=2)
    assert not any(".default." in name for name in trainable(model))
    second = logits(model, batch)
    assert (second - first).abs().max() > 1e-3
    assert min(g.abs().max() for g in gradients(model, batch).values()) > 0
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    loaded.load_adapter(tmp_path / "second", "second")
    assert torch.equal(logits(loaded, batch), first)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded.eval(), batch), second)


def test_two_active_adapters_add_up():
    model = live_hybrid("bert", **LORA_ONLY)
    model.add_adapter("second", small_config("bert", **LORA_ONLY))
    model.set_adapter("second")
    enliven(model, seed=2)
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    layer.set_adapter(["default", "second"])
    both = layer(x) - layer.base_layer(x)
    expected = x @ (layer.lora_delta("default") + layer.lora_delta("second")).T
    torch.testing.assert_close(both, expected)


def test_delete_adapter_leaves_the_other():
    model = live_hybrid("bert", gates=True, adapter_placement="parallel")
    batch = tiny_batch(model)
    model.add_adapter("second", small_config("bert"))
    model.set_adapter("second")
    enliven(model, seed=2)
    second = logits(model, batch)
    model.delete_adapter("default")
    assert torch.equal(logits(model, batch), second)
    assert not any("default" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("settings", ALL_PARTS)
def test_an_adapter_is_added_where_all_were_deleted(settings):
    model = live_hybrid("bert")
    model.add_adapter("lora", small_config("bert", **LORA_ONLY))
    model.set_adapter("lora")
    model.delete_adapter("default")
    model.add_adapter("second", small_config("bert", **settings))
    model.set_adapter("second")
    enliven(model, seed=2)
    assert min(g.abs().max() for g in gradients(model, tiny_batch(model)).values()) > 0
    assert {p.dtype for p in trainable(model).values()} == {torch.float64}


@pytest.mark.parametrize("settings", ALL_PARTS)
def test_merge_refused_before_anything_is_touched(settings):
    model = live_hybrid("bert", **settings)
    batch = tiny_batch(model)
    before = logits(model, batch)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotMergeableError, match=r"unload\(\)"):
            merge()
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "roberta", "electra", "modernbert", "bart", "t5", "deberta_v2"]
)
def test_lora_alone_merges(name):
    model = live_hybrid(name, **LORA_ONLY)
    batch = tiny_batch(model)
    before = logits(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), before)
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    assert all(layer.merged for layer in layers)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, batch), before)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(m, BaseTunerLayer) for m in merged.modules())
    torch.testing.assert_close(logits(merged, batch), before)


def test_disabling_takes_merged_lora_out_again():
    model = live_hybrid("bert", **LORA_ONLY)
    batch = tiny_batch(model)
    model.merge_adapter()
    with model.disable_adapter():
        off = logits(model, batch)
    torch.testing.assert_close(off, logits(tiny_model("bert"), batch))


def test_merge_with_nan_is_refused():
    model = live_hybrid("bert", **LORA_ONLY)
    next(p for n, p in trainable(model).items() if "lora_B" in n).data.fill_(float("nan"))
    with pytest.raises(NotMergeableError, match="NaN"):
        model.merge_adapter(safe_merge=True)


@pytest.mark.parametrize("settings", ALL_PARTS)
def test_unload_gives_the_base_model_back(settings):
    model = live_hybrid("bert", **{**settings, "gates": True})
    base = model.unload()
    twin = tiny_model("bert")
    # peft keeps the trained head on the unloaded model, whatever the method.
    twin.classifier.load_state_dict(base.classifier.state_dict())
    batch = tiny_batch(base)
    assert torch.equal(logits(base, batch), logits(twin, batch))
    assert base.state_dict().keys() == twin.state_dict().keys()
    assert not any(module._forward_pre_hooks for module in base.modules())
    assert type(base.bert.encoder.layer[0].attention.self.config) is type(base.config)
    again = get_peft_model(base, small_config("bert"))
    assert trainable(again)


@pytest.mark.parametrize(
    "name", ["roberta", "electra", "modernbert", "bart", "t5", "deberta_v2", "distilbert"]
)
def test_unload_keeps_a_head_of_several_layers(name):
    model = live_hybrid(name)
    batch, before = tiny_batch(model), trainable(model)
    base = model.unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())
    assert not any("modules_to_save" in key for key in base.state_dict())
    assert base.state_dict().keys() == tiny_model(name).state_dict().keys()
    # peft keeps the trained head on the unloaded model.
    heads = {n: p for n, p in before.items() if ".modules_to_save." in n}
    for key, tensor in heads.items():
        inside = key.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        assert torch.equal(base.get_parameter(inside), tensor)
    assert heads
    assert bool(logits(base, batch).isfinite().all())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_computes_the_same_and_is_apart(copier):
    model = live_hybrid("bert", adapter_placement="parallel")
    batch = tiny_batch(model)
    before = logits(model, batch)
    twin = copier(model)
    assert torch.equal(logits(twin, batch), before)
    enliven(twin, seed=5)
    assert (logits(twin, batch) - before).abs().max() > 1e-3
    assert torch.equal(logits(model, batch), before)


def test_state_dict_of_the_whole_model_round_trips():
    model, other = live_hybrid("bert"), fresh_hybrid("bert")
    other.load_state_dict(model.state_dict())
    batch = tiny_batch(model)
    assert torch.equal(logits(other, batch), logits(model, batch))


def test_injected_into_a_plain_model():
    base = inject_adapter_in_model(small_config("bert"), tiny_model("bert")).eval()
    enliven(base)
    state = get_peft_model_state_dict(base)
    assert sum("bhpeft_" in key for key in state) == 18
    assert min(g.abs().max() for g in gradients(base, tiny_batch(base)).values()) > 0


def test_through_the_adapter_methods_of_transformers():
    base = tiny_model("bert")
    base.add_adapter(small_config("bert"))
    batch = tiny_batch(base)
    enliven(base)
    assert min(g.abs().max() for g in gradients(base.eval(), batch).values()) > 0
    base.disable_adapters()
    assert torch.equal(logits(base, batch), logits(tiny_model("bert"), batch))


def test_get_peft_model_returns_our_tuner():
    assert isinstance(fresh_hybrid("bert").base_model, HybridModel)


def test_importing_twice_is_safe(tmp_path):
    from posthoc_bhpeft import hybrid

    members = len(peft_type().__class__)
    importlib.reload(hybrid)
    hybrid.registration.register(HybridConfig, HybridModel)
    assert len(peft_type().__class__) == members
    model = live_hybrid("bert")
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(tiny_model("bert"), tmp_path)


def test_layers_and_exclusions(recwarn):
    model = fresh_hybrid("bert", layers_to_transform=[1], exclude_modules=["value"])
    names = [n for n in trainable(model) if "bhpeft_" in n]
    assert names
    assert all(".layer.1." in n for n in names)
    assert any(".query." in n for n in names)
    assert not any(".value." in n for n in names)
    assert not [w for w in recwarn if "exclude_modules" in str(w.message)]


def test_base_weights_stay_as_they_were_in_training():
    model = live_hybrid("bert")
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    for batch in tiny_loader(model):
        model(**batch).loss.backward()
        optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


@pytest.mark.slow
def test_loading_without_the_package_fails_by_name(tmp_path):
    # The reason why model cards say `import posthoc_bhpeft`.
    fresh_hybrid("bert").save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "KeyError: 'BHPEFT'" in run.stderr
    code = "import posthoc_bhpeft; " + code
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_status_reports_of_peft():
    model = live_hybrid("bert")
    status = model.get_model_status()
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.merged_adapters == []
    assert status.requires_grad == {"default": True}
    assert status.trainable_params == sum(p.numel() for p in trainable(model).values())
    kinds = {layer.module_type for layer in model.get_layer_status()}
    assert kinds == {"HybridLinear", "HybridPrefix", "ModulesToSaveWrapper"}
