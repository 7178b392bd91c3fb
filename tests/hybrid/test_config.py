"""What a config accepts, and what it says about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import TaskType, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.errors import BhpeftError, ConfigError, TargetError
from posthoc_bhpeft.hybrid import AdapterPlacement, HybridConfig
from posthoc_bhpeft.hybrid.targets import default_targets, model_types
from tests.contracts import check_block
from tests.hybrid.families import families, tiny_batch, tiny_config, tiny_model
from tests.hybrid.tools import (
    enliven,
    fresh_hybrid,
    gradients,
    live_hybrid,
    small_config,
    trainable,
)


def test_a_newcomer_needs_no_more_than_the_task():
    model = get_peft_model(tiny_model("bert"), HybridConfig(task_type="SEQ_CLS"))
    names = "".join(trainable(model))
    assert all(part in names for part in ("lora_A", "adapter_down", "prefix", "modules_to_save"))


def test_defaults_are_those_documented():
    config = HybridConfig()
    sizes = (config.r, config.lora_alpha, config.bottleneck_size, config.num_virtual_tokens)
    assert sizes == (8, 16, 16, 8)
    assert config.adapter_placement is AdapterPlacement.SEQUENTIAL
    assert not config.gates


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": -1}, r"r=-1.*whole number, 0 to leave"),
        ({"r": 2.5}, "whole number"),
        ({"bottleneck_size": True}, "whole number"),
        ({"r": 0, "bottleneck_size": 0, "num_virtual_tokens": 0}, "at least one of them above 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout=1.0.*\[0, 1\)"),
        ({"prefix_init_std": -0.1}, "0 or more"),
        ({"adapter_placement": "houlsby"}, "'sequential', 'parallel', 'post_layernorm'"),
        ({"adapter_activation": "rel"}, "gelu"),
        ({"task_type": "SEQ_2_SEQ_LM", "gates": True}, "Leave gates off"),
    ],
)
def test_wrong_values_say_what_is_right(settings, words):
    with pytest.raises(ConfigError, match=words):
        HybridConfig(**settings)


def test_errors_are_value_errors_too():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, BhpeftError)


class Tiny(nn.Module):
    """A model transformers does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.first(x)))


def test_unknown_model_asks_for_targets():
    with pytest.raises(
        TargetError, match=r"lora_target_modules.*Model types with defaults: albert"
    ):
        get_peft_model(Tiny(), HybridConfig(bottleneck_size=0, num_virtual_tokens=0))


def test_unknown_model_works_with_targets_and_keeps_its_head():
    config = HybridConfig(
        lora_target_modules=["first"], adapter_target_modules=["first"], num_virtual_tokens=0
    )
    model = get_peft_model(Tiny(), config)
    enliven(model)
    model(torch.randn(3, 4)).square().sum().backward()
    assert config.modules_to_save == ["classifier"]
    assert all(p.grad is not None for p in trainable(model).values())


def test_no_match_shows_some_that_would():
    with pytest.raises(TargetError, match=r"matches no module.*attention\.self\.query"):
        fresh_hybrid("bert", lora_target_modules=["q_proj"])


def test_wrong_kind_of_module_is_named():
    with pytest.raises(TargetError, match=r"word_embeddings', a Embedding"):
        fresh_hybrid("bert", lora_target_modules=["word_embeddings"])


def test_missing_module_to_save_is_named():
    with pytest.raises(TargetError, match=r"modules_to_save names \['head'\].*classifier"):
        fresh_hybrid("bert", modules_to_save=["head"])


def test_task_with_a_head_needs_one():
    model = AutoModel.from_config(tiny_config("llama"))
    with pytest.raises(TargetError, match=r"no head of a known name"):
        get_peft_model(model, small_config("llama"))


def test_further_modules_to_save_are_trained_beside_the_head():
    model = fresh_hybrid("bert", modules_to_save=["pooler"])
    saved = {n.split(".modules_to_save.")[0] for n in trainable(model) if "modules_to_save" in n}
    assert saved == {"base_model.model.bert.pooler", "base_model.model.classifier"}


def test_targets_may_be_a_regular_expression():
    model = fresh_hybrid("bert", lora_target_modules=r".*\.layer\.1\..*\.query")
    lora = [n for n in trainable(model) if "lora_A" in n]
    assert len(lora) == 1
    assert ".layer.1." in lora[0]


@pytest.mark.parametrize("pattern", ["layer", ["block", "layer"], None])
def test_layers_are_counted_where_the_pattern_says(pattern):
    model = fresh_hybrid("bert", layers_to_transform=0, layers_pattern=pattern)
    ours = [n for n in trainable(model) if "bhpeft_" in n]
    assert ours
    assert all(".layer.0." in n for n in ours)


def test_lora_on_all_linear_modules():
    model = fresh_hybrid("bert", lora_target_modules="all-linear", adapter_placement="parallel")
    lora = [n for n in trainable(model) if "lora_A" in n]
    assert len(lora) == 2 * 6 + 1  # q, k, v, o, two of the feed-forward; the pooler; not the head


@pytest.mark.parametrize("field", ["lora_target_modules", "adapter_target_modules"])
def test_all_linear_modules_are_not_the_output_layer(field):
    """As in peft: it may be tied to the embedding, and then LoRA cannot be merged into it."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config("llama", tie_word_embeddings=True))
    settings = {"task_type": "CAUSAL_LM", field: "all-linear"}
    names = trainable(get_peft_model(base, small_config("llama", **settings)))
    assert any(".gate_proj." in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_the_output_layer_can_be_named():
    base = AutoModelForCausalLM.from_config(tiny_config("llama"))
    config = small_config("llama", task_type="CAUSAL_LM", lora_target_modules=["lm_head"])
    assert any("lm_head.bhpeft_lora_A" in name for name in trainable(get_peft_model(base, config)))


@pytest.mark.parametrize("share", [False, True])
def test_deberta_with_shared_projections_is_tuned_where_rows_are_apart(share):
    """The published ones project relative positions too, once for the whole batch."""
    model = live_hybrid("deberta_v2", base={"share_att_key": share})
    targets = model.peft_config["default"].lora_target_modules
    expected = ["value_proj", "attention.output.dense"] if share else ["query_proj", "value_proj"]
    assert targets == expected
    for block in discover(model):
        check_block(model, block, tiny_batch(model), tolerance=1e-6)


def test_used_on_another_model_type_says_to_make_a_new_config():
    config = small_config("bert")
    get_peft_model(tiny_model("bert"), config)
    with pytest.raises(TargetError, match="make a new one"):
        get_peft_model(tiny_model("llama"), config)


@pytest.mark.parametrize("task", [None, TaskType.FEATURE_EXTRACTION])
def test_other_tasks(task):
    model = fresh_hybrid("bert", task_type=task)
    heads = [n for n in trainable(model) if "modules_to_save" in n]
    assert bool(heads) == (task is None)


OTHERS = {
    "xlm-roberta": ("roberta", {}),
    "camembert": ("roberta", {}),
    "gemma": ("llama", {"head_dim": 8}),
    "mbart": ("bart", {}),
    "mt5": ("t5", {"is_gated_act": True, "feed_forward_proj": "gated-gelu"}),
    "bloom": ("gpt2", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("bert", {}),
    "gptj": ("gpt2", {"rotary_dim": 4}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_model_types_with_defaults(kind):
    like, more = OTHERS[kind]
    settings = {**tiny_config(like).to_diff_dict(), **more}
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        settings.pop(name, None)
    settings.update(num_labels=3, pad_token_id=1)
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[kind](**settings))
    known = default_targets(kind)
    config = small_config("bert", num_virtual_tokens=0 if known.attention is None else 3)
    model = get_peft_model(base.double(), config).eval()
    enliven(model)
    assert min(g.abs().max() for g in gradients(model, tiny_batch(model)).values()) > 0


def test_every_model_type_with_defaults_is_tested():
    tested = {tiny_config(name).model_type for name in families()} | set(OTHERS)
    assert tested == set(model_types())


def test_docs_name_every_model_type():
    page = (Path(__file__).parents[2] / "docs" / "hybrid.md").read_text(encoding="utf-8")
    assert [kind for kind in model_types() if f"`{kind}`" not in page] == []
