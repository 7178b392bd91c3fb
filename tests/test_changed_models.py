"""What is said where the model was changed after it was bayesianized: its adapter is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig

from posthoc_bhpeft import MAP, BayesianPeft, bayesianize
from posthoc_bhpeft.errors import BhpeftError, ModelError
from posthoc_bhpeft.selection import FixedPrecision
from tests.hybrid.families import tiny_batch, tiny_model
from tests.models import wrap

CONFIG = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])


@pytest.fixture
def bayes() -> BayesianPeft:
    model = wrap(tiny_model("bert"), CONFIG)
    return bayesianize(model, [tiny_batch(model)], prior=FixedPrecision(2.0), progress=False)


@pytest.mark.parametrize("away", ["merged", "deleted"])
def test_an_adapter_that_is_gone_is_missed_by_name(
    bayes: BayesianPeft, away: str, tmp_path: Path
) -> None:
    batch = tiny_batch(bayes.model)
    if away == "merged":
        bayes.model.merge_and_unload()
    else:
        bayes.model.add_adapter("other", CONFIG)
        bayes.model.delete_adapter("default")
    words = r"no .*lora_A\.default\.weight. any more .*merge_and_unload"
    for call in (
        lambda: bayes.predict(batch),
        lambda: bayes.predict(batch, MAP()),
        lambda: bayes.save_pretrained(tmp_path / "out"),
    ):
        with pytest.raises(ModelError, match=words):
            call()
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_merged_or_disabled_can_be_taken_back(bayes: BayesianPeft) -> None:
    batch = tiny_batch(bayes.model)
    expected = bayes.predict(batch).probabilities
    bayes.model.merge_adapter()
    with pytest.raises(BhpeftError, match=r"merged into the base .*unmerge_adapter"):
        bayes.predict(batch)
    bayes.model.unmerge_adapter()
    assert bayes.predict(batch).probabilities.allclose(expected, atol=1e-10)
    with (
        bayes.model.disable_adapter(),
        pytest.raises(BhpeftError, match=r"is disabled\..*disable_adapter"),
    ):
        bayes.predict(batch)
