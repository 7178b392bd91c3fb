"""Train with transformers' Trainer as always, and bayesianize what comes out.

python examples/with_trainer.py            real MiniLM weights, about a minute
python examples/with_trainer.py --tiny     a random model, a few seconds
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from rows import LABELS, TEXTS, UNSEEN
from tiny import base_from_command_line
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from posthoc_bhpeft import MAP, HybridConfig, MarginalLikelihood, bayesianize


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        name = base_from_command_line(__doc__, work)
        set_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(name)
        rows = Dataset.from_dict({"text": TEXTS, "labels": LABELS}).map(
            lambda row: tokenizer(row["text"]), batched=True, remove_columns="text"
        )
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
        trainer = Trainer(
            get_peft_model(model, HybridConfig(task_type="SEQ_CLS")),
            TrainingArguments(
                output_dir=str(work / "run"),
                num_train_epochs=20,
                learning_rate=2e-3,
                save_strategy="no",
                report_to=[],
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        trainer.train()

        # The Trainer's own loader, padded by its collator. Forty rows are learnt by heart;
        # there the evidence makes a better prior than the careful default.
        bayes = bayesianize(
            trainer.model, trainer.get_train_dataloader(), prior=MarginalLikelihood()
        )
        print(bayes.explain())

        batch = tokenizer(UNSEEN, padding=True, return_tensors="pt")
        prediction, trained = bayes.predict(batch), bayes.predict(batch, MAP())
        for row, text in enumerate(UNSEEN):
            before, after = trained.probabilities[row].max(), prediction.probabilities[row].max()
            print(f"trained {before:.3f}  Bayesian {after:.3f}  {text}")


if __name__ == "__main__":
    main()
