"""Give uncertainty to a LoRA checkpoint that somebody else trained with plain peft.

    python examples/third_party_lora.py            real MiniLM weights, about a minute
    python examples/third_party_lora.py --tiny     a random model, a few seconds

All that is needed is the checkpoint and labelled rows, at best those it was trained on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rows import UNSEEN, batches
from tiny import base_from_command_line
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posthoc_bhpeft import BayesianPeft, Kind, bayesianize


def somebody_else_trains(name: str, loader: list[dict[str, torch.Tensor]], folder: Path) -> None:
    """A stock LoRA, trained and saved without this package."""
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    model = get_peft_model(model, config).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3)
    for batch in [*loader] * 10:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        name = base_from_command_line(__doc__, work)
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(name)
        loader = batches(tokenizer)
        somebody_else_trains(name, loader, work / "lora")

        # is_trainable=True: peft loads checkpoints frozen, and frozen weights have no uncertainty.
        base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
        model = PeftModel.from_pretrained(base, str(work / "lora"), is_trainable=True)
        bayes = bayesianize(model, loader)
        kinds = [kind.value for kind in Kind if any(b.kind is kind for b in bayes.blocks)]
        print(f"Posterior over {len(bayes.blocks)} blocks: {', '.join(kinds)}.")

        batch = tokenizer(UNSEEN, padding=True, return_tensors="pt")
        prediction = bayes.predict(batch)
        for row in prediction.total.argsort():
            print(f"total {prediction.total[row]:.3f} nats  {UNSEEN[row]}")

        # Beside the adapter's own files; peft goes on reading those.
        bayes.save_pretrained(work / "lora")
        BayesianPeft.from_pretrained(work / "lora")


if __name__ == "__main__":
    main()
