"""`bhpeft estimate`: the same numbers from shapes as from the model itself."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posthoc_bhpeft import HybridConfig, KroneckerGGN, estimate
from posthoc_bhpeft.checkpoints import load_adapter
from posthoc_bhpeft.size import shapes_of
from tests.cli.tools import call, ok, refused
from tests.hybrid.families import tiny_model

CONFIGS = {
    "lora": LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
    "hybrid": HybridConfig(task_type="SEQ_CLS", r=2, bottleneck_size=4, num_virtual_tokens=3),
}


def saved(config, tmp_path):
    """A checkpoint beside its base, both tiny."""
    base = tiny_model("bert", num_labels=3)
    base.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(base, config)
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def checkpoint(tmp_path):
    return saved(CONFIGS["lora"], tmp_path)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shapes_give_the_numbers_of_the_model_itself(name, tmp_path):
    checkpoint = saved(CONFIGS[name], tmp_path)
    shapes, model = shapes_of(checkpoint), load_adapter(checkpoint)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    ours, theirs = (estimate(one, batch_size=4, length=8, n_rows=9) for one in (shapes, model))
    assert ours.blocks == theirs.blocks
    assert ours.passes == theirs.passes
    assert ours.work.batch.tapped_a_row == theirs.work.batch.tapped_a_row
    assert ours.work.model_bytes == pytest.approx(theirs.work.model_bytes, rel=0.01)


def test_the_command_says_bytes_passes_and_what_is_cheaper(checkpoint):
    found = ok("estimate", checkpoint, "--rows", 100, "--batch-size", 8, "--max-length", 8)
    direct = estimate(shapes_of(checkpoint), batch_size=8, length=8, n_rows=100)
    assert found["peak_bytes"] == direct.peak
    assert found["passes"][0] == {"step": "fit", "batches": 13, "forward": 1, "backward": 2}
    assert found["cheaper"]["DiagonalGGN()"] < found["peak_bytes"]
    assert found["fits"] is None


def test_the_tables_are_for_people(checkpoint):
    shown = call("estimate", checkpoint, "--rows", 100, "--memory", 80)
    assert shown.exit_code == 0
    for text in ("Curvature", "Memory, beside the model", "Passes", "Cheaper", "fits on a card of"):
        assert text in shown.stdout
    small = call("estimate", checkpoint, "--rows", 100, "--memory", 1e-6)
    assert "does not fit on a card of 1e-06 GB" in small.stdout


def test_a_rank_is_for_kronecker_factors(checkpoint):
    found = ok("estimate", checkpoint, "--rank", 4)
    assert found["curvature"] == repr(KroneckerGGN(rank=4))
    assert "for --curvature kronecker, not diagonal" in refused(
        "estimate", checkpoint, "--rank", 4, "--curvature", "diagonal"
    )


def test_wrong_settings_are_refused(checkpoint, tmp_path):
    assert "none of float32, bfloat16" in refused("estimate", checkpoint, "--dtype", "int4")
    assert "There is no folder" in refused("estimate", tmp_path / "nowhere")


def test_half_precision_bases_take_half(checkpoint):
    whole = ok("estimate", checkpoint)["model_bytes"]
    half = ok("estimate", checkpoint, "--dtype", "bfloat16")["model_bytes"]
    assert half < 0.6 * whole
    assert torch.bfloat16 in {p.dtype for p in shapes_of(checkpoint, dtype="bfloat16").parameters()}


def test_rows_are_no_longer_than_the_model_takes(checkpoint):
    found = estimate(shapes_of(checkpoint), length=10_000)
    assert found.work.batch.positions == 64


def test_a_base_in_four_bits_takes_less(checkpoint):
    whole = ok("estimate", checkpoint)
    found = ok("estimate", checkpoint, "--quantize", "4bit")
    assert found["model_bytes"] < whole["model_bytes"]
    assert found["peak_bytes"] == whole["peak_bytes"]
