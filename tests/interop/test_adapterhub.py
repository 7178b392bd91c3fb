"""AdapterHub's files become a hybrid with the outputs of the reference in adapterhub.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posthoc_bhpeft.interop.importing import import_hybrid
from tests.hybrid.families import tiny_batch, tiny_model
from tests.hybrid.tools import logits
from tests.interop.adapterhub import BEFORE, LORA, PAR_BN, PREFIX, SEQ_BN, Reference, union

FAMILIES = ["bert", "roberta", "electra", "distilbert"]


def imported(folder, family: str, **settings: Any):
    return import_hybrid(tiny_model(family, attention="eager"), folder, **settings)


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


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_same_outputs(part, family, tmp_path):
    reference = Reference(tiny_model(family, attention="eager"), PARTS[part])
    reference.save(tmp_path)
    batch = tiny_batch(reference.model)
    base = logits(tiny_model(family, attention="eager"), batch)
    expected = logits(reference.model, batch)
    assert (expected - base).abs().max() > 1e-2
    model = imported(tmp_path, family)
    # The library's softmax is in float64 here, that of plain attention too.
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-10)
