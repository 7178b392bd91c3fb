"""`bhpeft audit` of checkpoints that others trained for other tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.tools import ok, refused
from tests.tasks.test_commands import SEVERAL, classifier, lora, text_rows
from tests.tasks.words import foreign_checkpoint, make_questions, write_rows

FAST = ("--resamples", "20")


@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "AutoModelForMultipleChoice"])
def test_choices_are_classes(tmp_path: Path, kind: str) -> None:
    data = write_rows(tmp_path / "test.jsonl", make_questions(24, 1))
    if kind == "AutoModelForCausalLM":
        config, base = lora("CAUSAL_LM", "q_proj", "v_proj"), "llama"
    else:
        config, base = lora(None, "query", "value", modules_to_save=["classifier"]), "bert"
    adapter = foreign_checkpoint(tmp_path, kind, base, config)
    result = ok("audit", adapter, "--data", data, *FAST)
    assert result["rows"] == 24
    ok("fit", adapter, "--data", write_rows(tmp_path / "train.jsonl", make_questions(24, 0)),
       "--output", tmp_path / "fitted")  # fmt: skip
    both = ok("audit", tmp_path / "fitted", "--data", data, *FAST)["figures"]
    point = result["figures"][result["subject"]]
    assert both["MAP"]["nll"]["estimate"] == pytest.approx(point["nll"]["estimate"], rel=1e-4)


def test_of_several_labels_a_row_one_is_audited(tmp_path: Path) -> None:
    data, adapter = text_rows(tmp_path, SEVERAL), classifier(tmp_path, 3)
    message = refused("audit", adapter, "--data", data)
    assert "several labels, and an audit is about one" in message
    assert "Name it with --label, one of dry, hot, lit" in message
    found = ok("audit", adapter, "--data", data, "--label", "lit", *FAST)
    assert set(found["figures"]) == {"adapter"}
