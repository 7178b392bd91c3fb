"""What `discover` finds, what it refuses, and what it says."""

import copy

import pytest
import torch
from peft import (
    LNTuningConfig,
    LoraConfig,
    MissConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM

from posthoc_bhpeft.blocks import Block, Kind, MatrixView, discover
from posthoc_bhpeft.blocks.discover import DEFAULT_RECOGNIZERS, check_coverage
from posthoc_bhpeft.blocks.linear import observe_weight
from posthoc_bhpeft.errors import (
    HiddenAdapterError,
    ModelError,
    NothingTrainableError,
    UnclaimedParameterError,
)
from posthoc_bhpeft.hybrid import HybridConfig
from tests.contracts import check_block
from tests.hybrid.families import tiny_batch, tiny_config, tiny_model
from tests.models import SMALL, hybrid, lora, mlp, pairs, prefix, randomize, wrap

# ---------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("tensor_shape", "view"),
    [
        ((3, 4), MatrixView((3, 4))),
        ((5,), MatrixView((5, 1))),
        ((2, 2, 3, 4), MatrixView((3, 8), (1,), (1, 0, 2))),
        ((3, 8), MatrixView((3, 2), (slice(None), slice(2, 4)))),
    ],
    ids=["matrix", "vector", "prefix value", "columns"],
)
def test_a_view_writes_back_what_it_read_and_nothing_else(tensor_shape, view):
    tensor = torch.randn(tensor_shape, generator=torch.Generator().manual_seed(0))
    matrix = view.read(tensor)
    assert matrix.shape == view.shape
    changed = tensor.clone()
    view.write(changed, matrix + 1)
    assert torch.equal(view.read(changed), matrix + 1)
    assert int((changed != tensor).sum()) == matrix.numel()


def test_a_prefix_block_has_tokens_in_rows_and_heads_side_by_side():
    tensor = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)  # (2, H, T, d)
    value = MatrixView((3, 8), (1,), (1, 0, 2)).read(tensor)
    assert torch.equal(value[2], torch.cat([tensor[1, 0, 2], tensor[1, 1, 2]]))


# ---------------------------------------------------------------- what is found


def kinds(model):
    return {kind for kind in Kind if any(block.kind is kind for block in discover(model))}


def test_the_kinds_of_a_hybrid():
    assert kinds(hybrid()) == {Kind.LORA, Kind.ADAPTER, Kind.PREFIX, Kind.HEAD}


@pytest.mark.parametrize(
    ("left_out", "kind"),
    [("r", Kind.LORA), ("bottleneck_size", Kind.ADAPTER), ("num_virtual_tokens", Kind.PREFIX)],
)
def test_a_part_left_out_has_no_blocks(left_out, kind):
    everything = {Kind.LORA, Kind.ADAPTER, Kind.PREFIX, Kind.HEAD}
    assert kinds(hybrid(**{left_out: 0})) == everything - {kind}


def test_plain_lora_has_lora_and_head_blocks_whose_gradients_are_right():
    model = lora()
    assert kinds(model) == {Kind.LORA, Kind.HEAD}
    for block in discover(model):
        check_block(model, block, tiny_batch(model))


def test_plain_prefix_tuning_has_two_blocks_a_layer_whose_gradients_are_right():
    model = prefix()
    blocks = discover(model)
    assert sum(block.kind is Kind.PREFIX for block in blocks) == 2 * 2
    for block in blocks:
        check_block(model, block, tiny_batch(model))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj", "down_proj"]),
        ("gpt2", ["c_attn"]),  # Conv1D, whose weight is transposed
        ("opt", ["fc1"]),  # rows and positions on one axis
        ("albert", ["query"]),  # one layer called twice
        ("t5", ["q", "wo"]),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_plain_lora_on_other_families(family, targets):
    model = lora(family, target_modules=targets)
    blocks = [block for block in discover(model) if block.kind is Kind.LORA]
    assert blocks
    for block in blocks[:2] + blocks[-2:]:
        check_block(model, block, tiny_batch(model), tolerance=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_plain_prefix_tuning_on_other_families(family):
    model = prefix(family)
    blocks = [block for block in discover(model) if block.kind is Kind.PREFIX]
    assert len(blocks) == 2 * 2
    for block in blocks:
        check_block(model, block, tiny_batch(model), tolerance=1e-6)


def test_layer_norm_tuning_is_found_and_right():
    model = lora()
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            parameter.requires_grad_(True)
    blocks = [block for block in discover(model) if "LayerNorm" in block.name]
    assert len(blocks) == 2 * (2 * 2 + 1)
    for block in blocks:
        check_block(model, block, tiny_batch(model))


def test_any_torch_module_will_do():
    model = mlp(3, 4, 2)
    assert [(b.name, b.shape) for b in discover(model)] == [
        ("0.weight", (4, 3)),
        ("0.bias", (4, 1)),
        ("2.weight", (2, 4)),
        ("2.bias", (2, 1)),
    ]


def test_the_model_itself_may_be_the_layer():
    model = nn.Linear(3, 2).double()
    names = [block.name for block in discover(model)]
    assert names == ["weight", "bias"]
    for block in discover(model):
        check_block(model, block, pairs((4, 3), 2)[0])


def test_a_frozen_tensor_is_left_out():
    model = mlp(3, 4, 2)
    model[0].weight.requires_grad_(False)
    assert [block.name for block in discover(model)] == ["0.bias", "2.weight", "2.bias"]


def test_gates_are_found_and_right():
    model = hybrid(gates=True)
    gates = [block for block in discover(model) if "gate" in block.name]
    assert gates
    for block in gates:
        check_block(model, block, tiny_batch(model))


def two_adapters() -> PeftModel:
    model = hybrid()
    with torch.random.fork_rng(devices=[]):
        model.add_adapter("second", HybridConfig(**SMALL, num_virtual_tokens=3))
    model.double()
    return model


@pytest.mark.parametrize(("active", "other"), [("default", "second"), ("second", "default")])
def test_of_two_adapters_the_active_one_is_found(active, other):
    model = two_adapters()
    model.set_adapter(active)
    names = [block.name for block in discover(model)]
    assert names
    assert all(f".{active}." in name for name in names)
    assert not any(f".{other}." in name for name in names)


def test_of_two_adapters_active_together_both_are_found_and_right():
    model = two_adapters()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(["default", "second"])
    randomize(model)
    blocks = discover(model)
    for adapter in ("default", "second"):
        mine = [block for block in blocks if f".{adapter}." in block.name]
        assert {Kind.LORA, Kind.ADAPTER, Kind.PREFIX} <= {block.kind for block in mine}
        for block in mine[:6]:
            check_block(model, block, tiny_batch(model))


# ---------------------------------------------------------------- what is refused


def test_nothing_trainable():
    model = mlp(3, 2).requires_grad_(False)
    with pytest.raises(NothingTrainableError, match="requires a gradient"):
        discover(model)


def test_an_unclaimed_tensor_is_named_with_shape_owner_and_ways_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 2, 1))
    with pytest.raises(UnclaimedParameterError) as caught:
        discover(model)
    message = str(caught.value)
    assert message.startswith("2 trainable tensors are in no block")
    for part in ("1.weight (2, 3, 1) in Conv1d", "1.bias (2,)", "requires_grad_(False)"):
        assert part in message


def test_a_long_list_of_unclaimed_tensors_is_cut_short():
    model = nn.Sequential(*[nn.Conv1d(1, 1, 1) for _ in range(6)])
    with pytest.raises(UnclaimedParameterError, match=r"12 trainable(.|\n)*and 4 more") as caught:
        discover(model)
    assert "3.bias" in str(caught.value)
    assert "4.weight" not in str(caught.value)


def test_a_method_without_blocks_is_unclaimed_by_its_name():
    config = MissConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    with pytest.raises(UnclaimedParameterError, match=r"miss_block.*in MissLinear of peft's MissL"):
        discover(wrap(tiny_model("bert"), config))


def test_a_method_without_blocks_may_be_frozen_which_is_the_way_out():
    config = MissConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = wrap(tiny_model("bert"), config)
    for name, parameter in model.named_parameters():
        if "miss" in name:
            parameter.requires_grad_(False)
    assert {block.kind for block in discover(model)} == {Kind.HEAD}


class Odd(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_linear_layer_with_a_forward_of_its_own_is_not_taken_for_a_linear_layer():
    with pytest.raises(UnclaimedParameterError, match="in Odd"):
        discover(nn.Sequential(Odd(3, 2)))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.weight * x


def test_a_recognizer_of_ones_own_claims_the_rest():
    model = nn.Sequential(Scale(), nn.Linear(3, 2)).double()

    def observe_scale(given, cotangent, n_rows):
        return observe_weight(given * cotangent, torch.ones_like(given[..., :1]), n_rows)

    def scale_blocks(path, module):
        if isinstance(module, Scale):
            name = f"{path}.weight"
            yield Block(name, Kind.OTHER, name, path, MatrixView((1, 3)), observe_scale)

    with pytest.raises(UnclaimedParameterError):
        discover(model)
    blocks = discover(model, (*DEFAULT_RECOGNIZERS, scale_blocks))
    assert [block.name for block in blocks] == ["0.weight", "1.weight", "1.bias"]
    check_block(model, blocks[0], pairs((4, 3), 2)[0])


def test_a_tensor_claimed_in_part_is_unclaimed():
    model = nn.Linear(3, 2, bias=False)
    half = Block(
        "half", Kind.OTHER, "weight", "", MatrixView((1, 3), (slice(0, 1),)), observe_weight
    )
    with pytest.raises(UnclaimedParameterError, match="weight"):
        check_coverage(model, (half,))


def test_a_tensor_claimed_twice_is_refused():
    with pytest.raises(ModelError, match="claimed by two"):
        discover(nn.Linear(3, 2), (*DEFAULT_RECOGNIZERS, DEFAULT_RECOGNIZERS[0]))


def test_a_tensor_shared_by_two_modules_is_refused_with_both_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ModelError, match=r"shared.*0\.weight.*1\.weight"):
        discover(model)


def test_an_output_layer_tied_to_the_embedding_is_refused_with_both_names():
    config = tiny_config("llama", tie_word_embeddings=True)
    model = wrap(AutoModelForCausalLM.from_config(config), causal(target_modules=["q_proj"]))
    model.get_output_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"shared by 2 modules.*lm_head.*embed_tokens"):
        discover(model)


def test_trained_tokens_of_a_tied_output_layer_are_refused():
    """Their gradient there would be left out."""
    config = tiny_config("llama", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    model = wrap(model, causal(target_modules=["q_proj"], trainable_token_indices=[3, 4]))
    with pytest.raises(ModelError, match=r"shared by 2 modules.*lm_head.*embed_tokens"):
        discover(model)


def causal(**settings):
    return LoraConfig(task_type="CAUSAL_LM", r=2, **settings)


def test_one_module_reached_by_two_paths_is_one_block():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer).double()
    blocks = discover(model)
    assert len(blocks) == 2
    for block in blocks:
        check_block(model, block, pairs((4, 3), 3)[0])


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("name", ["lora_v2", "my_adapter", "prefix1", "head", "lora_A"])
def test_what_an_adapter_is_called_says_nothing(name):
    def found(config, called):
        model = get_peft_model(tiny_model("bert"), config, adapter_name=called)
        return [block.kind for block in discover(model)]

    for config in (
        lambda: HybridConfig(**SMALL, num_virtual_tokens=3, gates=True),
        lambda: LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]),
        lambda: LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "word_embeddings"]),
    ):
        assert found(config(), name) == found(config(), "default")


# ---------------------------------------------------------------- hidden adapters


@pytest.mark.parametrize("nested", [True, False], ids=["PeftModel", "its inside"])
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT")
def test_lora_under_a_stock_prefix_is_hidden_and_said_so(nested):
    inner = get_peft_model(
        tiny_model("bert"), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    )
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = get_peft_model(inner if nested else inner.base_model.model, config)
    with pytest.raises(HiddenAdapterError, match=r"LoraLayer.*frozen.*HybridConfig"):
        discover(model)


def test_a_merged_adapter_is_hidden():
    model = lora()
    model.merge_adapter()
    with pytest.raises(HiddenAdapterError, match=r"merged.*unmerge_adapter"):
        discover(model)
    model.unmerge_adapter()
    assert discover(model)


@pytest.mark.parametrize("make", [hybrid, lora])
def test_a_disabled_adapter_is_hidden(make):
    model = make()
    with model.disable_adapter(), pytest.raises(HiddenAdapterError, match="disabled"):
        discover(model)
    assert discover(model)


@pytest.mark.parametrize("make", [hybrid, lora])
def test_an_adapter_loaded_frozen_is_hidden(make, tmp_path):
    make().save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    with pytest.raises(HiddenAdapterError, match="is_trainable=True"):
        discover(frozen)
    trainable = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, is_trainable=True)
    assert discover(trainable)


def test_discovery_leaves_no_trace():
    model = hybrid()
    before = copy.deepcopy(model.state_dict())
    discover(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
