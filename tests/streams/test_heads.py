"""Heads grow exactly: old outputs as they were, new ones drawn, everything saved and loaded."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from posthoc_bhpeft import HybridConfig
from posthoc_bhpeft.checkpoints import load_adapter
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.streams.heads import grow_head, name_outputs
from tests.hybrid.families import WITHOUT_PREFIX, tiny_batch
from tests.models import seeded
from tests.tuned import plain_lora, tuned

FAMILIES = (
    *("bert", "roberta", "electra", "distilbert", "albert", "modernbert"),
    *("llama", "gpt2", "opt", "gpt_neox", "mpnet", "deberta_v2"),
)


def hybrid(family):
    tokens = 0 if family in WITHOUT_PREFIX else 2
    return tuned(
        family,
        HybridConfig(task_type="SEQ_CLS", r=2, bottleneck_size=4, num_virtual_tokens=tokens),
    )


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_old_outputs_are_kept_to_the_last_bit(family):
    model = hybrid(family)
    batch = tiny_batch(model, labels=False)
    heads = {n: p.detach().clone() for n, p in model.named_parameters() if "modules_to_save" in n}
    before = logits(model, batch)
    grow_head(model, 2, seeded())
    after = logits(model, batch)
    assert after.shape == (len(before), 5)
    # The sum behind an output may be ordered differently in a wider product.
    torch.testing.assert_close(after[:, :3], before, rtol=1e-12, atol=1e-12)
    parameters = dict(model.named_parameters())
    for name, old in heads.items():
        assert torch.equal(parameters[name][: len(old)], old)
        assert parameters[name].requires_grad
    assert {len(parameters[n]) - len(old) for n, old in heads.items()} <= {0, 2}


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_it_survives_saving(family, tmp_path):
    model = hybrid(family)
    grow_head(model, 2, seeded())
    name_outputs(model, ("a", "b", "c", "d", "e"))
    model.save_pretrained(tmp_path)
    again = load_adapter(tmp_path, label_names=("a", "b", "c", "d", "e")).double()
    batch = tiny_batch(model, labels=False)
    # The base of the folder is the same model in the same precision.
    torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=1e-6, atol=1e-6)
    counted = load_adapter(tmp_path)
    assert counted.config.num_labels == 5


def test_config_and_model_know_their_labels():
    model = tuned()
    grow_head(model, 1, seeded())
    assert model.config.num_labels == model.get_base_model().num_labels == 4
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good", 3: "LABEL_3"}
    assert model.config.label2id["LABEL_3"] == 3
    batch = tiny_batch(model)
    batch["labels"][:] = 3
    model(**batch).loss.backward()
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert head.weight.grad.shape == (4, 32)


def test_new_outputs_are_drawn_as_transformers_draws_them():
    model = tuned()
    model.config.initializer_range = 0.3
    grow_head(model, 400, seeded(5))
    head = model.base_model.model.classifier.modules_to_save["default"]
    new = head.weight.detach()[3:]
    assert new.std().item() == pytest.approx(0.3, rel=0.03)
    assert new.mean().item() == pytest.approx(0.0, abs=5 * 0.3 / new.numel() ** 0.5)
    assert not head.bias.detach()[3:].any()


def test_the_generator_alone_decides():
    def grown(seed):
        model = tuned()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            grow_head(model, 2, seeded(1))
        return model.base_model.model.classifier.modules_to_save["default"].weight

    assert torch.equal(grown(0), grown(1))


def test_the_frozen_copy_grows_along():
    model = tuned()
    grow_head(model, 2, seeded())
    batch = tiny_batch(model, labels=False)
    with model.disable_adapter():
        assert logits(model, batch).shape[1] == 5
    assert not model.base_model.model.classifier.original_module.weight.requires_grad


def test_growing_twice_is_growing():
    model, batch = tuned(), tiny_batch(tuned(), labels=False)
    before = logits(model, batch)
    grow_head(model, 1, seeded())
    grow_head(model, 2, seeded(1))
    torch.testing.assert_close(logits(model, batch)[:, :3], before, rtol=1e-12, atol=1e-12)
    assert model.config.num_labels == 6


def test_plain_peft_grows_too():
    model = tuned(config=plain_lora())
    grow_head(model, 2, seeded())
    assert logits(model, tiny_batch(model, labels=False)).shape[1] == 5


def test_a_head_that_is_not_trained_cannot_grow():
    model = tuned(config=LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ModelError, match="modules_to_save"):
        grow_head(model, 1, seeded())


def test_a_head_cannot_shrink():
    with pytest.raises(ConfigError, match="1 output or more"):
        grow_head(tuned(), 0, seeded())
