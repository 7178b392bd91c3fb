"""Every row of the support table: what the page says is what happens, and gradients are exact."""

import pytest
import torch

from posthoc_bhpeft.batches import forward, split_batch
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.blocks.prompts import THAW
from tests.contracts import any_direction, observations
from tests.hybrid.families import single_rows, tiny_batch
from tests.oracles import per_sample
from tests.support.cases import Case, batches, cases, loaded
from tests.support.table import PAGE, quotation, row, run, written

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys"),
]

SUPPORTED = [case for case in cases() if not case.refused]

#: Gemma normalises in float32 whatever the model's precision.
SINGLE_PRECISION = {"gemma2": 1e-6}


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", cases(), ids=by_name)
def test_a_row_of_the_page_is_what_happens(case):
    outcome = run(case)
    assert bool(outcome.message) == bool(case.refused), outcome.message
    assert case.refused in outcome.message
    rewrite = "the page is out of date: python -m tests.support.table --write"
    assert row(case, outcome) in written().splitlines(), rewrite
    if outcome.message:
        assert quotation(case, outcome) in written(), rewrite


def test_the_page_has_these_rows_and_no_others():
    stated = [line for line in written().splitlines() if line.startswith("|")][2:]
    assert len(stated) == len(cases()) == len({case.name for case in cases()})
    good = sum(not case.refused for case in cases())
    assert f"{good} of {len(cases())} rows are supported" in written()


def test_the_page_thaws_prompts_as_the_message_says():
    page = PAGE.read_text(encoding="utf-8")
    assert all(line.strip() in page for line in THAW.splitlines())


def gradients(model, batch, direction):
    """`G_n` of every block."""
    seen = observations(model, discover(model), batch, direction)
    return {name: observation.gradient() for name, observation in seen.items()}


@pytest.mark.parametrize("case", SUPPORTED, ids=by_name)
def test_gradients_a_row_are_those_of_autograd_and_of_the_row_alone(case, tmp_path):
    model = loaded(case, tmp_path).double().eval()
    for batch in (batches(case, model)[0], tiny_batch(model, padding=not case.answers_last)):
        direction = any_direction(model, batch)
        inputs, _ = split_batch(batch)
        found = gradients(model, batch, direction)
        exact = per_sample(model, discover(model), (forward(model, inputs) * direction).sum(1))
        tolerance = SINGLE_PRECISION.get(case.family, 1e-10)
        for name, gradient in found.items():
            scale = exact[name].abs().max()
            assert scale > 0, f"{name} is dead"
            assert (gradient - exact[name]).abs().max() <= tolerance * scale + 1e-14, name
        if not case.answers_last:
            break
    # Of those that answer at the last position, rows without padding: in front, it moves a row.
    check_alone(model, batch, direction, found)


def check_alone(model, batch, direction, together):
    """Every row alone, without its padding, has the gradient that it has among others."""
    scale = max(float(gradient.abs().max()) for gradient in together.values())
    for index, alone in enumerate(single_rows(batch)):
        for name, gradient in gradients(model, alone, direction[index : index + 1]).items():
            error = (gradient[0] - together[name][index]).abs().max()
            assert error < 1e-6 * scale, (index, name)


@pytest.mark.parametrize("second", ["inactive", "active"])
def test_of_two_adapters_only_the_active_one_has_blocks_and_a_head(second, tmp_path):
    case = next(case for case in SUPPORTED if case.second == second and case.method == "LoRA")
    model = loaded(case, tmp_path)
    other = "default" if second == "active" else "second"
    for name, parameter in model.named_parameters():
        if f".{other}." in name:  # as peft or a user may leave it
            parameter.requires_grad_(True)
    names = [block.name for block in discover(model)]
    assert any("modules_to_save" in name for name in names)
    assert not any(f".{other}." in name for name in names)


def test_ranks_that_adalora_pruned_are_gone_after_loading(tmp_path):
    case = next(case for case in SUPPORTED if case.detail == "ranks pruned")
    ranks = [b.shape[0] for b in discover(loaded(case, tmp_path)) if "lora_A" in b.name]
    assert sum(ranks) == 2 * 4
    assert torch.tensor(ranks).max() <= 3
