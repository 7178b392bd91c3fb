"""`--quantize`: trained, fitted and predicted with the base in few bits, as the files say."""

from __future__ import annotations

import json

import pytest
import torch

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.quantization import quantization_of
from posthoc_bhpeft.rivals.ensemble import load_member
from tests.cli.tools import TINY, ok, refused
from tests.texts import make_base, make_rows, write_jsonl

SMALL = (*TINY, "--epochs", "1", "--max-length", "16")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base and rows to train on."""
    folder = tmp_path_factory.mktemp("quantised")
    for split, seed in (("train", 1), ("test", 2)):
        write_jsonl(folder / "data" / f"{split}.jsonl", make_rows(24, seed))
    return make_base(folder / "base"), folder / "data"


def kept(folder):
    """How the base of a fitted checkpoint was quantised."""
    return quantization_of(BayesianPeft.from_pretrained(folder).model)


@pytest.mark.parametrize(("bits", "loaded"), [("4bit", "load_in_4bit"), ("8bit", "load_in_8bit")])
def test_trained_fitted_and_predicted_in_few_bits(places, tmp_path, bits, loaded):
    base, data = places
    out = tmp_path / "out"
    ok("train", "--model", base, "--data", data, "--output", out, *SMALL, "--quantize", bits)
    assert json.loads((out / "training.json").read_text())["settings"]["quantize"] == bits
    ok("fit", out)
    assert kept(out)[loaded]
    found = ok("predict", out, "--output", tmp_path / "fitted")
    plain = ok("predict", out, "--output", tmp_path / "map", "--predictive", "map")
    assert found["metrics"]["nll"] == pytest.approx(plain["metrics"]["nll"], abs=0.05)


def test_fit_keeps_the_base_as_told(places, tmp_path):
    base, data = places
    out = tmp_path / "out"
    ok("train", "--model", base, "--data", data, "--output", out, *SMALL)
    ok("fit", out, "--output", tmp_path / "whole")
    assert kept(tmp_path / "whole") is None
    four = tmp_path / "four"
    ok("fit", out, "--output", four, "--quantize", "4bit", "--dtype", "bfloat16")
    assert kept(four)["bnb_4bit_compute_dtype"] == "bfloat16"
    assert BayesianPeft.from_pretrained(four).model.config.dtype is torch.bfloat16
    message = refused("fit", out, "--output", tmp_path / "none", "--dtype", "float17")
    assert "dtype is 'float17'" in message


def test_members_of_an_ensemble_are_kept_as_they_were_trained(places, tmp_path):
    base, data = places
    out = tmp_path / "out"
    options = (*SMALL, "--quantize", "4bit", "--dtype", "bfloat16")
    ok("train", "--model", base, "--data", data, "--output", out, *options)
    member = load_member(out)
    assert quantization_of(member)["load_in_4bit"]
    assert member.config.dtype is torch.bfloat16
