"""Prompt learning: what is a block, what is said of a frozen prompt and of a network behind one."""

from pathlib import Path

import pytest
import torch
from peft import (
    MultitaskPromptTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)

from posthoc_bhpeft import bayesianize
from posthoc_bhpeft.batches import forward, split_batch
from posthoc_bhpeft.blocks import Kind, discover, observing
from posthoc_bhpeft.blocks.prompts import THAW, thaw_prompt
from posthoc_bhpeft.errors import DataError, HiddenAdapterError, ModelError, UnclaimedParameterError
from tests.contracts import check_block
from tests.hybrid.families import tiny_batch, tiny_loader, tiny_model
from tests.models import prefix, wrap

SETTINGS = {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}


def prompted(family: str = "bert") -> PeftModel:
    return wrap(tiny_model(family), PromptTuningConfig(**SETTINGS))


def loaded(model: PeftModel, folder: Path, family: str = "bert") -> PeftModel:
    """As peft loads it: the head frozen."""
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny_model(family), folder).double()


def test_a_prompt_in_memory_is_one_block_of_tokens_by_features():
    model = prompted()
    (block,) = [block for block in discover(model) if block.kind is Kind.PREFIX]
    assert block.shape == (3, 32)
    check_block(model, block, tiny_batch(model))


def test_a_prefix_in_memory_and_a_loaded_one_have_the_same_blocks_and_gradients(tmp_path):
    first = prefix()
    again = loaded(first, tmp_path)
    thaw_prompt(again)
    names = [block.name for block in discover(first)]
    assert [block.name for block in discover(again)] == names
    for block in discover(again):
        check_block(again, block, tiny_batch(again))


@pytest.mark.parametrize("make", [prompted, prefix])
def test_a_loaded_prompt_has_a_frozen_head_and_the_recipe_in_the_message_thaws_it(make, tmp_path):
    model = loaded(make(), tmp_path)
    with pytest.raises(HiddenAdapterError, match=r"The head.*classifier.*frozen") as caught:
        discover(model)
    assert THAW in str(caught.value)
    exec("\n".join(line.strip() for line in THAW.splitlines()), {"model": model})
    assert {block.kind for block in discover(model)} == {Kind.PREFIX, Kind.HEAD}


def test_a_frozen_prompt_is_hidden():
    model = prompted()
    model.prompt_encoder.requires_grad_(False)
    with pytest.raises(HiddenAdapterError, match=r"prompt \(PROMPT_TUNING\) is frozen"):
        discover(model)


def test_a_head_that_its_trainer_froze_is_left_out():
    model = prompted()
    model.base_model.classifier.requires_grad_(False)
    assert {block.kind for block in discover(model)} == {Kind.PREFIX}


@pytest.mark.parametrize(
    ("config", "network"),
    [
        (PrefixTuningConfig(**SETTINGS, prefix_projection=True), "PREFIX_TUNING.*transform"),
        (PromptEncoderConfig(**SETTINGS, encoder_hidden_size=8), "P_TUNING.*mlp_head"),
    ],
    ids=["prefix", "P-tuning"],
)
def test_a_network_behind_a_prompt_is_refused_and_gone_once_saved_and_loaded(
    config, network, tmp_path
):
    model = wrap(tiny_model("bert"), config)
    with pytest.raises(UnclaimedParameterError, match=f"{network}.*load it again"):
        discover(model)
    again = loaded(model, tmp_path)
    thaw_prompt(again)
    assert Kind.PREFIX in {block.kind for block in discover(again)}


def multitask() -> PeftModel:
    return wrap(tiny_model("bert"), MultitaskPromptTuningConfig(**SETTINGS, num_tasks=2))


def test_a_prompt_made_of_several_tensors_is_refused_by_name():
    with pytest.raises(UnclaimedParameterError, match=r"MULTITASK_PROMPT_TUNING.*PROMPT_TUNING"):
        discover(multitask())


def test_such_a_prompt_may_be_frozen_which_is_the_way_out():
    model = multitask()
    model.prompt_encoder.requires_grad_(False)
    assert {block.kind for block in discover(model)} == {Kind.HEAD}


def test_a_decoder_that_would_answer_at_padding_is_refused():
    model = prompted("gpt2")
    with pytest.raises(DataError, match=r"padding in 3 of 4.*padding_side"):
        bayesianize(model, tiny_loader(model), progress=False)


def left_padded(model: PeftModel) -> dict[str, torch.Tensor]:
    """A batch with its padding in front."""
    batch = tiny_batch(model)
    for name in ("input_ids", "attention_mask"):
        lengths = batch["attention_mask"].sum(1)
        shifts = (batch["attention_mask"].shape[1] - lengths).tolist()
        if name == "input_ids":
            batch[name] = torch.stack(
                [row.roll(k) for row, k in zip(batch[name], shifts, strict=True)]
            )
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    return batch


def test_padding_in_front_is_right_for_a_decoder():
    model = prompted("gpt2")
    batch = left_padded(model)
    assert not batch["attention_mask"][1:, 0].any()
    for block in discover(model):
        check_block(model, block, batch)


def test_the_base_model_alone_is_not_what_a_prompt_is_taped_at():
    model = prompted()
    blocks = discover(model)
    batch = tiny_batch(model)
    inputs, _ = split_batch(batch)
    with observing(model, blocks), pytest.raises(ModelError, match=r"inputs_embeds.*PeftModel"):
        forward(model.base_model, inputs)


def test_a_cache_that_is_no_cache_of_layers_is_explained():
    model = prefix()
    blocks = [block for block in discover(model) if block.kind is Kind.PREFIX]
    site = blocks[0].site
    with pytest.raises(ModelError, match=r"got tuple.*HybridConfig"):
        site((), {"past_key_values": ()})


def test_of_two_prompts_the_active_one_is_found():
    model = prompted()
    model.add_adapter("second", PromptTuningConfig(**SETTINGS))
    model.double()
    assert any(p.requires_grad for p in model.prompt_encoder["second"].parameters())
    names = [block.name for block in discover(model)]
    assert any("default" in name for name in names)
    assert not any("second" in name for name in names)
    for block in discover(model):
        check_block(model, block, tiny_batch(model))
