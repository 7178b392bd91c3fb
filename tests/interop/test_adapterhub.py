"""AdapterHub's files become a hybrid with the outputs of the reference in adapterhub.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import get_activation

from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.interop.importing import import_hybrid
from tests.hybrid.families import tiny_batch, tiny_model
from tests.hybrid.tools import logits
from tests.interop.adapterhub import (
    BEFORE,
    LORA,
    PAR_BN,
    PREFIX,
    SEQ_BN,
    Reference,
    union,
    write_head,
)
from tests.interop.test_importing import change, prefix_config, stock

FAMILIES = ["bert", "roberta", "electra", "distilbert"]


def imported(folder, family: str, **settings: Any):
    return import_hybrid(tiny_model(family, attention="eager"), folder, **settings)


def same(ours, theirs, batch) -> None:
    # Plain attention is in float64 here on both sides, so only the order of sums differs.
    torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-10)


PARTS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora_on_all": {**LORA, "attn_matrices": ["q", "k", "v"], "leave_out": [0]},
    "prefix": PREFIX,
    "prefix_behind_a_network": {**PREFIX, "flat": False},
    "prefix_left_out": {**PREFIX, "leave_out": [0]},
    "seq_bn": SEQ_BN,
    "seq_bn_left_out": {**SEQ_BN, "leave_out": [1], "non_linearity": "leakyrelu"},
    "before_the_residual": BEFORE,
    "par_bn": PAR_BN,
    "par_bn_learned": {**PAR_BN, "scaling": "learned"},
    "by_channel": {**SEQ_BN, "scaling": "channel"},
    "union": union(PREFIX, SEQ_BN, LORA),
    "mix_and_match": union(PREFIX, PAR_BN),
}


#: DistilBERT has other names and another block, so the places are tried there too.
PLACED = [
    *(("bert", part) for part in PARTS),
    *(("distilbert", part) for part in ("before_the_residual", "par_bn", "union")),
]


@pytest.mark.parametrize(("family", "part"), PLACED)
def test_same_outputs(family, part, tmp_path):
    reference = Reference(tiny_model(family, attention="eager"), PARTS[part])
    reference.save(tmp_path)
    batch = tiny_batch(reference.model)
    base = logits(tiny_model(family, attention="eager"), batch)
    expected = logits(reference.model, batch)
    assert (expected - base).abs().max() > 1e-2
    same(imported(tmp_path, family), reference.model, batch)


def test_safetensors_are_read_and_saved_from_a_model_without_a_head(tmp_path):
    reference = Reference(tiny_model("bert", attention="eager"), union(LORA, SEQ_BN))
    reference.save(tmp_path, safe=True)
    path = tmp_path / "adapter.safetensors"
    save_file({key.removeprefix("bert."): t for key, t in load_file(path).items()}, path)
    batch = tiny_batch(reference.model)
    same(imported(tmp_path, "bert"), reference.model, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_transformers(family, tmp_path):
    theirs = tiny_model(family, attention="eager", seed=3)
    theirs.base_model.load_state_dict(tiny_model(family).base_model.state_dict())
    reference = Reference(theirs, SEQ_BN)
    reference.save(tmp_path, head="static")
    batch = tiny_batch(theirs)
    model = imported(tmp_path, family)
    same(model, theirs, batch)
    other = imported(tmp_path, family, head_from="base")
    assert not torch.allclose(logits(other, batch), logits(theirs, batch))


#: What the library calls a head, with the class that computes it.
STACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {"layers": 2, "activation_function": "tanh", "use_pooler": False}),
    "bert pooled": ("bert", {"layers": 1, "activation_function": None, "use_pooler": True}),
    "roberta": ("roberta", {"layers": 2, "activation_function": "tanh", "use_pooler": False}),
    "electra": ("electra", {"layers": 2, "activation_function": "gelu", "use_pooler": False}),
    "distilbert": ("distilbert", {"layers": 2, "activation_function": "relu"}),
}


def flexible(folder, family: str, form: dict[str, Any], **changes: Any) -> list[torch.Tensor]:
    """Write a flexible head; its weights and biases, layer by layer."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(32, 32)] * (form["layers"] - 1) + [(3, 32)]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for rows, columns in sizes
        for shape in ((rows, columns), (rows,))
    ]
    names = [f"heads.task.{1 + 3 * i}.{kind}" for i in range(2) for kind in ("weight", "bias")]
    config = {
        "config": {"head_type": "classification", "num_labels": 3, "bias": True, **form, **changes},
        "model_class": "AutoAdapterModel",
        "model_type": family,
        "name": "task",
    }
    write_head(folder, dict(zip(names, tensors, strict=False)), config)
    return tensors


@pytest.mark.parametrize("stack", STACKS)
def test_a_flexible_head(stack, tmp_path):
    family, form = STACKS[stack]
    reference = Reference(tiny_model(family, attention="eager"), SEQ_BN)
    reference.save(tmp_path)
    tensors = flexible(tmp_path, family, form)
    batch = tiny_batch(reference.model, labels=False)
    with torch.no_grad():
        states = reference.model.base_model(**batch)
        if form.get("use_pooler"):
            expected = nn.functional.linear(states.pooler_output, *tensors)
        else:
            first = nn.functional.linear(states.last_hidden_state[:, 0], *tensors[:2])
            activated = get_activation(form["activation_function"])(first)
            expected = nn.functional.linear(activated, *tensors[2:])
    model = imported(tmp_path, family)
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-10)


def test_heads_that_the_class_does_not_compute(tmp_path):
    Reference(tiny_model("bert"), SEQ_BN).save(tmp_path)
    flexible(tmp_path, "bert", STACKS["bert"][1], activation_function="relu")
    with pytest.raises(ConfigError, match=r"2 layers with activation 'relu' .* head_from='base'"):
        imported(tmp_path, "bert")
    imported(tmp_path, "bert", head_from="base")
    flexible(tmp_path, "bert", STACKS["bert pooled"][1], layers=2, activation_function="tanh")
    with pytest.raises(ConfigError, match=r"use_pooler=True"):
        imported(tmp_path, "bert")
    flexible(tmp_path, "bert", {**STACKS["bert"][1], "layers": 2}, head_type="tagging")
    with pytest.raises(ConfigError, match=r"is a 'tagging'"):
        imported(tmp_path, "bert")


@pytest.mark.parametrize("version", ["adapters.1.0.1", "adapters.0.2.0", "adapters.1.1.0", "3.2.1"])
def test_versions_that_left_the_scale_out(version, tmp_path):
    unscaled = version in ("adapters.1.0.1", "adapters.0.2.0")
    trained = {**LORA, "alpha": LORA["r"]} if unscaled else LORA
    reference = Reference(tiny_model("bert", attention="eager"), union(trained, SEQ_BN))
    reference.save(tmp_path)
    change(tmp_path, version=version, config=union(LORA, SEQ_BN))
    batch = tiny_batch(reference.model)
    same(imported(tmp_path, "bert"), reference.model, batch)


def test_old_names_of_activations(tmp_path):
    new = {**SEQ_BN, "non_linearity": "gelu_new"}
    reference = Reference(tiny_model("bert", attention="eager"), new)
    reference.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["version"]
    config["config"]["non_linearity"] = "gelu"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    batch = tiny_batch(reference.model)
    same(imported(tmp_path, "bert"), reference.model, batch)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "double": ({**SEQ_BN, "mh_adapter": True}, r"mh_adapter=True; a hybrid computes .*False"),
    "own norm": ({**SEQ_BN, "ln_after": True}, r"ln_after=True"),
    "compacter": ({**SEQ_BN, "phm_layer": True}, r"phm_layer=True"),
    "other residual": ({**SEQ_BN, "residual_before_ln": False}, r"residual_before_ln=False"),
    "gates": ({**SEQ_BN, "use_gating": True}, r"has gates"),
    "activation": ({**SEQ_BN, "non_linearity": "sine"}, r"non_linearity='sine'"),
    "ia3": ({**LORA, "composition_mode": "scale"}, r"composition_mode='scale'"),
    "reft": ({"architecture": "reft"}, r"architecture 'reft'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_hybrid_does_not_compute(what, tmp_path):
    config, message = REFUSED[what]
    Reference(tiny_model("bert"), SEQ_BN).save(tmp_path)
    change(tmp_path, config=config)
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, "bert")


def test_a_size_for_each_layer(tmp_path):
    first, last = ({**SEQ_BN, "leave_out": [i], "reduction_factor": 4 * (i + 1)} for i in (0, 1))
    Reference(tiny_model("bert"), union(first, last)).save(tmp_path)
    change(tmp_path, config={**SEQ_BN, "reduction_factor": {"0": 8, "1": 4}})
    with pytest.raises(CheckpointError, match=r"one size for all layers .* got \[4, 8\]"):
        imported(tmp_path, "bert")


def test_tensors_without_a_place_and_places_without_a_tensor(tmp_path):
    Reference(tiny_model("bert"), SEQ_BN).save(tmp_path)
    path = tmp_path / "pytorch_adapter.bin"
    tensors = torch.load(path)
    torch.save({**tensors, "bert.invertible_adapters.task.F.weight": torch.ones(2)}, path)
    with pytest.raises(ConfigError, match=r"invertible_adapters.*no place for"):
        imported(tmp_path, "bert")
    del tensors["bert.encoder.layer.1.output.adapters.task.adapter_up.bias"]
    torch.save(tensors, path)
    with pytest.raises(
        CheckpointError, match=r"layer\.1\.output\.LayerNorm' lacks adapter_up.bias"
    ):
        imported(tmp_path, "bert")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cut off or damaged"):
        imported(tmp_path, "bert")


def test_another_base(tmp_path):
    Reference(tiny_model("bert"), union(PREFIX, SEQ_BN)).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"'some-base' with model_type 'bert'.* 'roberta'"):
        imported(tmp_path, "roberta")
    with pytest.raises(CheckpointError, match=r"hidden_size 32; this base model has 48"):
        import_hybrid(tiny_model("bert", hidden_size=48), tmp_path)
    with pytest.raises(CheckpointError, match=r"3 virtual tokens for 3 layers"):
        import_hybrid(tiny_model("bert", num_hidden_layers=3), tmp_path)


def test_places_that_the_libraries_do_not_share(tmp_path):
    Reference(tiny_model("bert"), SEQ_BN).save(tmp_path)
    change(tmp_path, model_type="gpt2")
    with pytest.raises(
        ConfigError, match=r"model type 'gpt2', where AdapterHub puts it at another"
    ):
        imported(tmp_path, "gpt2")
    change(tmp_path, config="pfeiffer")
    with pytest.raises(ConfigError, match=r"names its settings as 'pfeiffer'"):
        imported(tmp_path, "gpt2")


def test_beside_a_prefix_of_peft(tmp_path):
    """Two libraries in one hybrid: the text moves for peft's prefix."""
    base = tiny_model("bert", attention="eager")
    Reference(base, union(SEQ_BN, LORA)).save(tmp_path / "adapter")
    theirs = stock(base, prefix_config())
    theirs.save_pretrained(tmp_path / "prefix")
    batch = tiny_batch(theirs)
    bare = tiny_model("bert", attention="eager")
    ours = import_hybrid(bare, tmp_path / "adapter", tmp_path / "prefix")
    same(ours, theirs, batch)
