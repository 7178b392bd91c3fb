"""Bases in half precision: the fit is finite, and near that of float32."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.checkpoints import load_base
from posthoc_bhpeft.curvature import Contrasts, KroneckerGGN
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.selection import FixedPrecision
from tests.oracles import relative_error
from tests.tasks.tiny import asked, base_folder, hybrid, lora, prompts

BATCHES = [prompts(), prompts(seed=1)]


def halved(model: nn.Module, dtype: torch.dtype, *, adapters: bool) -> nn.Module:
    """The same model with its base, or all of it, in another precision."""
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        if adapters or not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return half


def fit(model: nn.Module) -> BayesianPeft:
    return bayesianize(
        model,
        BATCHES,
        curvature=KroneckerGGN(directions=Contrasts()),
        prior=FixedPrecision(2.0),
        progress=False,
    )


@pytest.mark.parametrize("adapters", [False, True], ids=["base", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("config", [hybrid(), lora()], ids=["hybrid", "lora"])
def test_fit_and_prediction_are_those_of_float32(
    config: Any, dtype: torch.dtype, adapters: bool, tmp_path: Path
) -> None:
    model = asked("llama", copy.deepcopy(config)).float()
    half, full = fit(halved(model, dtype, adapters=adapters)), fit(model)
    for name, operator in full.posterior.curvature.items():
        trace = half.posterior.curvature[name].trace()
        assert trace.dtype == torch.float32
        assert torch.isclose(trace, operator.trace(), rtol=0.15), name
    expected, found = full.predict(BATCHES[0]), half.predict(BATCHES[0])
    assert torch.allclose(found.probabilities, expected.probabilities, atol=0.01)
    assert relative_error(found.covariance, expected.covariance) < 0.05
    half.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path).predict(BATCHES[0])
    assert torch.equal(again.probabilities, found.probabilities)


def test_a_quantised_base_without_its_library_is_refused(tmp_path: Path) -> None:
    folder = base_folder("AutoModelForCausalLM", "llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "dataset": "c4"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"needs a library .*optimum.*model=") as found:
        load_base(tmp_path, label_names=None, architecture="AutoModelForCausalLM")
    assert isinstance(found.value.__cause__, ImportError)
