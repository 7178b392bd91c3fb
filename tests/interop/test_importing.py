"""peft's own LoRA and prefix become one hybrid; peft's own models are the oracle."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.errors import (
    CheckpointError,
    ConfigError,
    ModelError,
    PrefixUnsupportedError,
)
from posthoc_bhpeft.interop.exporting import export_lora
from posthoc_bhpeft.interop.importing import import_hybrid
from tests.hybrid.families import tiny_batch, tiny_config, tiny_model
from tests.hybrid.tools import enliven, logits

LORA: dict[str, dict[str, Any]] = {
    "bert": {"target_modules": ["query", "value"], "use_rslora": True},
    "roberta": {"target_modules": "all-linear"},
    "distilbert": {"target_modules": r".*layer\.1\.attention\.[qv]_lin"},
    "llama": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    "t5": {"target_modules": ["q", "v"], "modules_to_save": ["classification_head"]},
}
PREFIX = ["bert", "roberta", "llama", "gpt2"]


def stock(base: PreTrainedModel, config: Any, seed: int = 1) -> PeftModel:
    """A model of peft as after training."""
    model = get_peft_model(base, config).to(base.dtype).eval()
    enliven(model, seed=seed)
    return model


def lora_config(family: str = "bert", **changes: Any) -> LoraConfig:
    settings = {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7, **LORA[family]}
    return LoraConfig(**{**settings, **changes})


def prefix_config(**changes: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(**{"task_type": "SEQ_CLS", "num_virtual_tokens": 3, **changes})


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    stock(tiny_model("bert"), lora_config()).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    stock(tiny_model("bert"), prefix_config(), seed=2).save_pretrained(tmp_path / "prefix")
    return tmp_path / "prefix"


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")


def rewrite(folder: Path, change: Any) -> None:
    """Save the tensors again after `change` has had them."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("family", LORA)
def test_lora_and_back(family, tmp_path):
    theirs = stock(tiny_model(family), lora_config(family))
    theirs.save_pretrained(tmp_path / "lora")
    batch = tiny_batch(theirs)
    ours = import_hybrid(tiny_model(family), tmp_path / "lora")
    assert torch.equal(logits(ours, batch), logits(theirs, batch))
    assert not (logits(ours, batch) - logits(tiny_model(family), batch)).abs().max() < 1e-2

    assert export_lora(ours, tmp_path / "back") == ()
    one, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("lora", "back"))
    assert {*one} <= {*other}  # a hybrid may train more of the head
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    again = PeftModel.from_pretrained(tiny_model(family), tmp_path / "back").double().eval()
    assert torch.allclose(logits(again, batch), logits(theirs, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", PREFIX)
def test_prefix(family, tmp_path):
    theirs = stock(tiny_model(family), prefix_config())
    theirs.save_pretrained(tmp_path)
    batch = tiny_batch(theirs)
    ours = import_hybrid(tiny_model(family), tmp_path)
    assert torch.equal(logits(ours, batch), logits(theirs, batch))


def test_a_prefix_behind_a_projection_comes_as_keys_and_values(tmp_path):
    config = prefix_config(prefix_projection=True, encoder_hidden_size=7)
    theirs = stock(tiny_model("gpt2"), config)
    theirs.save_pretrained(tmp_path)
    batch = tiny_batch(theirs)
    ours = import_hybrid(tiny_model("gpt2"), tmp_path)
    torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", PREFIX)
def test_lora_and_prefix_together(family, tmp_path):
    # peft's prefix around a model that has peft's LoRA in it.
    inner = tiny_model(family)
    targets = LORA[family]["target_modules"]
    if targets == "all-linear":  # without a task that takes the head too
        targets = ["query", "key"]
    inside = stock(inner, lora_config(family, task_type=None, target_modules=targets))
    inside.save_pretrained(tmp_path / "lora")
    theirs = stock(inner, prefix_config(), seed=2)
    theirs.save_pretrained(tmp_path / "prefix")
    batch = tiny_batch(theirs)
    ours = import_hybrid(tiny_model(family), tmp_path / "lora", tmp_path / "prefix")
    torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-12)
    with pytest.warns(UserWarning, match="prefix stayed behind"):
        assert export_lora(ours, tmp_path / "back") == ("prefix",)


def test_the_hybrid_can_be_trained_saved_and_bayesianized(lora, prefix, tmp_path):
    ours = import_hybrid(tiny_model("bert"), lora, prefix, head_from=prefix)
    assert {block.kind.value for block in discover(ours)} == {"lora", "prefix", "head"}
    batch = tiny_batch(ours)
    ours(**batch).loss.backward()
    trainable = [p for p in ours.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trainable)
    ours.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "ours").eval()
    assert torch.equal(logits(again, batch), logits(ours, batch))


def test_causal_language_models(tmp_path):
    def base() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(tiny_config("llama")).double().eval()

    theirs = stock(base(), lora_config("llama", task_type="CAUSAL_LM"))
    theirs.save_pretrained(tmp_path)
    batch = tiny_batch(theirs, labels=False)
    ours = import_hybrid(base(), tmp_path)
    assert torch.equal(logits(ours, batch), logits(theirs, batch))


def test_heads_are_chosen(lora, prefix):
    with pytest.raises(ConfigError, match=r"2 checkpoints hold a trained head"):
        import_hybrid(tiny_model("bert"), lora, prefix)
    with pytest.raises(ConfigError, match=r"is none of the folders"):
        import_hybrid(tiny_model("bert"), lora, prefix, head_from="elsewhere")
    bases = tiny_model("bert").classifier.weight
    weights = {}
    for choice in (lora, prefix, "base"):
        model = import_hybrid(tiny_model("bert"), lora, prefix, head_from=choice)
        weights[choice] = model.get_base_model().classifier.modules_to_save["default"].weight
    assert torch.equal(weights["base"], bases)
    for folder, start in ((lora, "base_model.model."), (prefix, "base_model.")):
        stored = load_file(folder / "adapter_model.safetensors")
        assert torch.equal(weights[folder], stored[f"{start}classifier.weight"])


def test_a_pickle_of_tensors_is_read(lora):
    tensors = load_file(lora / "adapter_model.safetensors")
    (lora / "adapter_model.safetensors").unlink()
    torch.save(tensors, lora / "adapter_model.bin")
    batch = tiny_batch(tiny_model("bert"))
    theirs = PeftModel.from_pretrained(tiny_model("bert"), lora).double().eval()
    ours = logits(import_hybrid(tiny_model("bert"), lora), batch)
    assert torch.allclose(ours, logits(theirs, batch), atol=1e-5)


class Trap:
    """Runs when a pickle of it is loaded."""

    def __reduce__(self) -> Any:
        return Path.write_text, (Path("trapped"), "")


def test_a_pickle_with_more_in_it_is_not_run(lora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (lora / "adapter_model.safetensors").unlink()
    torch.save({"x": Trap()}, lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"a pickle with more in it than tensors"):
        import_hybrid(tiny_model("bert"), lora)
    assert not Path("trapped").exists()


DAMAGES: dict[str, tuple[Any, str]] = {
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        r"has a config and no weights",
    ),
    "cut off": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x10"),
        r"cut off or damaged",
    ),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), r"holds no adapter"),
    "a list of tensors": (
        lambda folder: (
            (folder / "adapter_model.safetensors").unlink(),
            torch.save([torch.zeros(1)], folder / "adapter_model.bin"),
        ),
        r"no plain dict of tensors",
    ),
    "half a pair": (
        lambda folder: rewrite(folder, lambda t: t.pop(next(k for k in t if "lora_B" in k))),
        r"has only its matrix A",
    ),
    "a layer missing": (
        lambda folder: rewrite(
            folder, lambda t: [t.pop(k) for k in list(t) if "1.attention.self.query" in k]
        ),
        r"no LoRA for 'bert.encoder.layer.1.attention.self.query'",
    ),
    "half a head": (
        lambda folder: rewrite(folder, lambda t: t.pop("base_model.model.classifier.bias")),
        r"the head lacks 'classifier.bias'",
    ),
    "magnitudes": (
        lambda folder: rewrite(folder, lambda t: t.update({"x.lora_magnitude": torch.ones(2)})),
        r"holds 'x.lora_magnitude' and 0 more",
    ),
    "dora": (lambda folder: change(folder, use_dora=True), r"use_dora=True, which a hybrid cannot"),
    "alphas": (lambda folder: change(folder, alpha_pattern={"query": 3}), r"alpha_pattern="),
    "biases": (lambda folder: change(folder, bias="all"), r"bias='all'"),
    "of tomorrow": (lambda folder: change(folder, use_magic=True), r"use_magic=True"),
    "pissa": (lambda folder: change(folder, init_lora_weights="pissa"), r"changes the base model"),
    "no alpha": (lambda folder: change(folder, lora_alpha=None, peft_type="IA3"), r"kind 'IA3'"),
    "ours": (lambda folder: change(folder, peft_type="BHPEFT"), r"is a hybrid already"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_imported_is_named_and_the_model_left_alone(damage, lora):
    spoil, message = DAMAGES[damage]
    spoil(lora)
    base = tiny_model("bert")
    names = list(base.state_dict())
    with pytest.raises((CheckpointError, ConfigError), match=message):
        import_hybrid(base, lora)
    assert list(base.state_dict()) == names


def test_ranks_that_differ(tmp_path):
    base = tiny_model("bert")
    stock(base, lora_config(rank_pattern={"query": 2})).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"one rank for all modules .*2 at .*3 at"):
        import_hybrid(tiny_model("bert"), tmp_path)


def test_ranks_that_a_pattern_makes_equal(tmp_path):
    pattern = {"query": 2, "value": 2}
    theirs = stock(tiny_model("bert"), lora_config(rank_pattern=pattern))
    theirs.save_pretrained(tmp_path)
    batch = tiny_batch(theirs)
    ours = import_hybrid(tiny_model("bert"), tmp_path)
    assert ours.peft_config["default"].r == 2
    assert torch.equal(logits(ours, batch), logits(theirs, batch))


OTHER_BASES: dict[str, tuple[Any, str]] = {
    "width": (lambda: tiny_model("bert", hidden_size=48), r"a base of other sizes"),
    "classes": (lambda: tiny_model("bert", num_labels=4), r"another number of classes"),
    "layers": (lambda: tiny_model("bert", num_hidden_layers=1), r"layer\.1.* has no such module"),
    "family": (lambda: tiny_model("llama"), r"has no such module"),
}


@pytest.mark.parametrize("other", OTHER_BASES)
def test_another_base(other, lora):
    build, message = OTHER_BASES[other]
    with pytest.raises(CheckpointError, match=message):
        import_hybrid(build(), lora)


def test_another_base_of_a_prefix(prefix):
    with pytest.raises(CheckpointError, match=r"3 virtual tokens for 1 layers .* are 192"):
        import_hybrid(tiny_model("bert", num_hidden_layers=1), prefix)
    with pytest.raises(PrefixUnsupportedError, match=r"takes none"):
        import_hybrid(tiny_model("mpnet"), prefix)
    change(prefix, num_transformer_submodules=2)
    with pytest.raises(ConfigError, match=r"one half of its keys"):
        import_hybrid(tiny_model("bart"), prefix)


def test_one_of_each_part(lora, prefix, tmp_path):
    shutil.copytree(lora, tmp_path / "more")
    with pytest.raises(ConfigError, match=r"hold a LoRA, and a hybrid has one of each"):
        import_hybrid(tiny_model("bert"), lora, prefix, tmp_path / "more", head_from="base")
    change(prefix, task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match=r"different tasks: CAUSAL_LM, SEQ_CLS"):
        import_hybrid(tiny_model("bert"), lora, prefix, head_from="base")
    with pytest.raises(ConfigError, match=r"needs a checkpoint"):
        import_hybrid(tiny_model("bert"))


def test_a_lora_inside_the_head(tmp_path):
    config = lora_config("roberta", task_type=None)
    stock(tiny_model("roberta"), config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"without a place .*classifier.*as a LoRA on the"):
        import_hybrid(tiny_model("roberta"), tmp_path)


def test_a_model_with_adapters_is_no_base(lora):
    model = import_hybrid(tiny_model("bert"), lora)
    for tuned in (model, model.get_base_model()):
        with pytest.raises(ModelError, match=r"has adapters already"):
            import_hybrid(tuned, lora)


def test_what_cannot_be_exported(lora, prefix, tmp_path):
    with pytest.raises(ConfigError, match=r"has no LoRA"):
        export_lora(import_hybrid(tiny_model("bert"), prefix), tmp_path / "out")
    ours = import_hybrid(tiny_model("bert"), lora)
    with pytest.raises(ConfigError, match=r"export_lora takes a hybrid; 'other' is none"):
        export_lora(ours, tmp_path / "out", adapter_name="other")
    with pytest.raises(ConfigError, match=r"is not empty"):
        export_lora(ours, lora)
    export_lora(ours, lora, overwrite=True)
    gated = copy.deepcopy(ours)
    gated.peft_config["default"].gates = True
    with pytest.raises(ConfigError, match=r"has gates"):
        export_lora(gated, tmp_path / "out")


def test_no_module_of_ours_is_in_the_export(lora, tmp_path):
    ours = import_hybrid(tiny_model("bert"), lora)
    export_lora(ours, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert sorted(config["target_modules"]) == ["query", "value"]
    assert config["use_rslora"]
    assert not [
        key for key in load_file(tmp_path / "back/adapter_model.safetensors") if "bhpeft" in key
    ]
