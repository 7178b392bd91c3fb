"""The whole path on the real MiniLM: train, bayesianize, predict, save, load in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

import pytest
import torch

from posthoc_bhpeft import MAP, BayesianPeft, Kind, Linearized, LogOdds, Sampled, bayesianize

pytestmark = pytest.mark.slow

ROWS = 96

RELOAD = """
import json, sys, torch
from posthoc_bhpeft import BayesianPeft
bayes = BayesianPeft.from_pretrained(sys.argv[1])
batch = {name: torch.tensor(value) for name, value in json.loads(sys.argv[2]).items()}
print(json.dumps(bayes.predict(batch).probabilities.tolist()))
"""


@pytest.fixture(scope="module")
def rows():
    lines = (files("posthoc_bhpeft.demo") / "satisfaction.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[: ROWS + 16]]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from posthoc_bhpeft.checkpoints import resolve_model

    return AutoTokenizer.from_pretrained(resolve_model("minilm"))


def as_batches(rows, tokenizer, size=16):
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        texts = [row["text"] for row in part]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        batches.append({**batch, "labels": torch.tensor([row["label"] for row in part])})
    return batches


@pytest.fixture(scope="module")
def trained(rows, tokenizer):
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    from posthoc_bhpeft import HybridConfig
    from posthoc_bhpeft.checkpoints import resolve_model

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(resolve_model("minilm"), num_labels=3)
    model = get_peft_model(base, HybridConfig(task_type="SEQ_CLS"))
    batches = as_batches(rows[:ROWS], tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()
    for _ in range(4):
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return model.eval(), batches


def test_the_main_job_on_real_weights(trained, rows, tokenizer, tmp_path):
    model, batches = trained
    held_out = as_batches(rows[ROWS:], tokenizer)[0]

    bayes = bayesianize(model, batches, progress=False)
    assert {block.kind for block in bayes.blocks} >= {
        Kind.LORA,
        Kind.ADAPTER,
        Kind.PREFIX,
        Kind.HEAD,
    }
    assert bayes.posterior.n_rows == ROWS

    ours, plain = bayes.predict(held_out), bayes.predict(held_out, MAP())
    assert torch.equal(ours.predicted, plain.predicted)
    # The posterior makes it less sure of each row; the temperature may make it surer of all.
    untempered = bayes.predict(held_out, Linearized())
    assert bool((untempered.total > plain.total - 1e-6).all())
    link = bayes.predictive.link
    assert isinstance(link, LogOdds) or link.temperature < 1
    assert bool((ours.epistemic > 0).all())
    assert torch.allclose(ours.total, ours.aleatoric + ours.epistemic)
    sampled = bayes.predict(held_out, Sampled(samples=4))
    assert torch.allclose(sampled.probabilities.sum(-1), torch.ones(16))

    bayes.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path)
    assert torch.equal(again.predict(held_out).probabilities, ours.probabilities)

    content = {name: tensor.tolist() for name, tensor in held_out.items()}
    printed = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path), json.dumps(content)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    elsewhere = torch.tensor(json.loads(printed.splitlines()[-1]))
    assert torch.allclose(elsewhere, ours.probabilities, atol=1e-6)
