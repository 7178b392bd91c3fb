"""Blocks of stock peft methods against the dense GGN of `jacrev`, where factors are exact.

They are for vectors: ranks of one and one virtual token make every block of these methods one, but
for the head. Weights are random, rows have padding, and there is more than one datum.
"""

from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from posthoc_bhpeft.blocks import Kind, discover, find_products
from posthoc_bhpeft.blocks.embedding import token_blocks
from posthoc_bhpeft.blocks.targeted import target_parameter_blocks
from posthoc_bhpeft.curvature import Exact, KroneckerGGN, fit_curvature
from posthoc_bhpeft.errors import UnclaimedParameterError
from posthoc_bhpeft.likelihood import Categorical
from tests.contracts import check_block
from tests.hybrid.families import PAD, tiny_batch, tiny_loader, tiny_model
from tests.models import lora, randomize, wrap
from tests.oracles import dense_ggn, relative_error

SEQ: dict[str, Any] = {"task_type": "SEQ_CLS"}
TOKEN: dict[str, Any] = {**SEQ, "num_virtual_tokens": 1}
QUERY: dict[str, Any] = {**SEQ, "r": 1, "target_modules": ["query"]}
TOKENS = {"word_embeddings": [4]}

# Not among them: target_parameters, which peft puts on in a way that torch.func does not trace.
METHODS: dict[str, tuple[str, Any]] = {
    "embedding LoRA": ("bert", LoraConfig(**{**QUERY, "target_modules": ["word_embeddings"]})),
    "trained token": ("bert", LoraConfig(**QUERY, trainable_token_indices=TOKENS)),
    "Conv1D": ("gpt2", LoraConfig(**SEQ, r=1, bias="lora_only", fan_in_fan_out=True)),
    "DoRA": ("bert", LoraConfig(**QUERY, use_dora=True)),
    "DoRA on Conv1D": ("gpt2", LoraConfig(**SEQ, r=1, use_dora=True, fan_in_fan_out=True)),
    "DoRA of embeddings": (
        "bert",
        LoraConfig(**{**QUERY, "target_modules": ["word_embeddings"]}, use_dora=True),
    ),
    "AdaLoRA": (
        "bert",
        AdaLoraConfig(**SEQ, init_r=1, target_r=1, total_step=9, target_modules=["query"]),
    ),
    "IA3": ("bert", IA3Config(**SEQ)),
    "VeRA": ("bert", VeraConfig(**SEQ, r=3)),
    "RMSNorm": ("llama", LNTuningConfig(**SEQ)),
    "prefix": ("bert", PrefixTuningConfig(**TOKEN)),
    "prompt": ("bert", PromptTuningConfig(**TOKEN)),
}

#: Llama normalises in float32, so the two ways to its gradients differ there.
TOLERANCE = {"llama": 1e-5}


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("method", METHODS)
def test_the_curvature_is_the_exact_ggn_where_blocks_are_vectors(method):
    family, config = METHODS[method]
    model = wrap(tiny_model(family), config)
    loader, likelihood = tiny_loader(model, rows=3), Categorical()
    blocks = [block for block in discover(model) if block.kind is not Kind.HEAD]
    assert blocks
    assert all(1 in block.shape for block in blocks)
    found = fit_curvature(model, blocks, loader, likelihood, KroneckerGGN(Exact())).operators
    exact = dense_ggn(model, blocks, loader, likelihood)
    for block in blocks:
        error = relative_error(found[block.name].dense(), exact[block.name])
        assert error < TOLERANCE.get(family, 1e-9), block.name


def with_two_adapters(config: Any) -> nn.Module:
    """Both active at once."""
    model = wrap(tiny_model("bert"), config)
    model.add_adapter("second", config)
    model.double()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(["default", "second"])
    randomize(model, seed=3)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(**SEQ),
        VeraConfig(**SEQ, r=3),
        LoraConfig(**{**QUERY, "target_modules": ["word_embeddings", "query"]}),
    ],
    ids=["IA3", "VeRA", "embedding LoRA"],
)
def test_two_adapters_that_are_active_together_both_have_blocks_that_are_right(config):
    model = with_two_adapters(config)
    blocks = [block for block in discover(model) if block.kind is not Kind.HEAD]
    for adapter in ("default", "second"):
        mine = [block for block in blocks if f".{adapter}" in block.name]
        assert mine
        for block in mine:
            check_block(model, block, tiny_batch(model))


def test_of_two_dora_adapters_active_together_the_magnitudes_are_refused():
    with pytest.raises(UnclaimedParameterError, match="lora_magnitude_vector"):
        discover(with_two_adapters(LoraConfig(**QUERY, use_dora=True)))


def test_a_scale_of_zero_has_the_gradient_of_the_layer_behind_it():
    model = wrap(tiny_model("bert"), IA3Config(**SEQ))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.view(-1)[::2] = 0
    for block in discover(model):
        check_block(model, block, tiny_batch(model))


def test_padding_is_looked_up_but_not_learnt():
    model = lora(target_modules=["word_embeddings"])
    (down,) = [block for block in discover(model) if "embedding_A" in block.name]
    batch = tiny_batch(model)
    assert bool((batch["input_ids"] == PAD).any())
    # Seen by attention, padding has an effect on the outputs, and still no gradient.
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    check_block(model, down, batch)


def test_a_large_vocabulary_is_split_into_blocks_that_cover_it():
    blocks = list(token_blocks("here", "default", 2, 600))
    assert [block.shape for block in blocks] == [(2, 256), (2, 256), (2, 88)]
    assert blocks[-1].name == "here.lora_embedding_A.default[tokens 512 to 599]"
    seen = torch.zeros(2, 600)
    for block in blocks:
        block.view.write(seen, block.view.read(seen) + 1)
    assert bool((seen == 1).all())


def test_split_columns_have_the_gradients_of_autograd(monkeypatch):
    monkeypatch.setattr("posthoc_bhpeft.blocks.embedding.TOKENS", 25)
    model = lora(target_modules=["word_embeddings"])
    blocks = [block for block in discover(model) if "embedding_A" in block.name]
    assert [block.shape[1] for block in blocks] == [25, 25, 10]
    for block in blocks:
        check_block(model, block, tiny_batch(model))


def test_the_factors_of_adalora_are_no_product():
    config = AdaLoraConfig(**SEQ, init_r=2, target_r=1, total_step=9)
    assert find_products(discover(wrap(tiny_model("bert"), config))) == ()


class Experts(nn.Module):
    """Weights as peft's `target_parameters` are meant for: one matrix an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked = nn.Parameter(torch.zeros(2, 3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.stacked[0]


def test_lora_on_the_weights_of_experts_is_refused_by_name():
    layer = ParamWrapper(Experts(), "default", "stacked", LoraConfig(), r=2, lora_alpha=1)
    with pytest.raises(UnclaimedParameterError, match=r"'mlp'.*'stacked' of Experts.*target_mod"):
        list(target_parameter_blocks("mlp", layer))
