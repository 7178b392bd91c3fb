"""`bhpeft import` and `bhpeft export-lora`: folders of others in, a checkpoint that fits out."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from posthoc_bhpeft.checkpoints import load_adapter
from tests.cli.tools import call, ok, refused
from tests.hybrid.tools import enliven
from tests.interop.adapterhub import SEQ_BN, Reference
from tests.texts import make_base, make_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "importing.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def base(folder):
    return make_base(folder / "base")


def build(base):
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).eval()


@pytest.fixture(scope="module")
def lora(folder, base):
    model = get_peft_model(build(base), LoraConfig(task_type="SEQ_CLS", r=2))
    enliven(model)
    model.save_pretrained(folder / "lora")
    return folder / "lora"


@pytest.fixture(scope="module")
def prefix(folder, base):
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model = get_peft_model(build(base), config)
    enliven(model)
    model.save_pretrained(folder / "prefix")
    return folder / "prefix"


def outputs(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 16).view(2, 6)).logits


def test_a_lora_there_and_back(lora, base, folder):
    done = ok("import", lora, "--output", folder / "out")
    assert done["parts"] == {"LoRA": str(lora)}
    assert done["head"] == str(lora)
    assert done["outputs"] == 2
    theirs = outputs(PeftModel.from_pretrained(build(base), lora).eval())
    assert torch.equal(outputs(load_adapter(folder / "out")), theirs)

    assert ok("export-lora", folder / "out", "--output", folder / "back")["left_behind"] == []
    again = PeftModel.from_pretrained(build(base), folder / "back").eval()
    assert torch.equal(outputs(again), theirs)


def test_two_folders_and_what_stays_behind(lora, prefix, folder):
    both = folder / "both"
    assert "--head-from" in refused("import", lora, prefix, "--output", both)
    assert not both.exists()
    done = ok("import", lora, prefix, "--head-from", prefix, "--output", both)
    assert done["parts"] == {"LoRA": str(lora), "prefix": str(prefix)}
    assert done["head"] == str(prefix)
    assert "is not empty" in refused("import", lora, "--output", both)
    said = call("export-lora", both, "--output", folder / "apart")
    assert said.exit_code == 0
    assert "left behind: prefix" in said.stdout
    assert "Warning" not in said.output


def test_an_adapter_without_a_head_or_a_base_that_is_here(base, folder):
    model = build(base).double()
    Reference(model, SEQ_BN).save(folder / "adapter")
    there = ("import", folder / "adapter", "--output", folder / "none")
    assert "--classes" in refused(*there, "--base", base)
    done = ok(*there, "--base", base, "--classes", 2)
    assert done["head"] is None
    assert done["parts"] == {"adapter": str(folder / "adapter")}
    again = load_adapter(folder / "none")
    assert torch.allclose(outputs(again), outputs(model).float(), atol=1e-4)


@pytest.fixture
def page(folder, base, lora, prefix, tmp_path, monkeypatch):
    """The guide's text, in a folder with the files that it names."""
    shutil.copytree(lora, tmp_path / "their-lora")
    shutil.copytree(prefix, tmp_path / "their-prefix")
    rows = ["text,label", *(f"{row['text']},{row['label']}" for row in make_rows(24))]
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    named = {"google-bert/bert-base-uncased": str(base), "num_labels=3": "num_labels=2"}
    for long, short in named.items():
        assert long in text
        text = text.replace(long, short)
    return text


def test_the_python_of_the_guide(page):
    scope = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    with pytest.warns(UserWarning, match="prefix stayed behind"):
        exec("".join(blocks), scope)
    assert scope["left_behind"] == ("prefix",)
    assert torch.equal(outputs(load_adapter("out")), outputs(scope["model"]))


def test_the_commands_of_the_guide(page):
    for line in re.findall(r"^\$ bhpeft (.*)$", page, re.MULTILINE):
        ok(*shlex.split(line))
    answers = Path("answers", "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"epistemic", "probabilities"} <= {*json.loads(answers[0])}
    assert load_file("lora/adapter_model.safetensors").keys()


def test_what_the_command_says_of_itself():
    shown = call("import", "--help").stdout
    assert "AdapterHub" in shown
    assert "bhpeft fit out" in shown
    assert "stay behind" in call("export-lora", "--help").stdout
