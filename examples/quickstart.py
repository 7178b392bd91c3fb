"""Train a hybrid, make it Bayesian in one call, predict, save, and load again.

python examples/quickstart.py            real MiniLM weights, about a minute
python examples/quickstart.py --tiny     a random model, a few seconds
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import get_peft_model
from rows import UNSEEN, batches
from tiny import base_from_command_line
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posthoc_bhpeft import BayesianPeft, HybridConfig, MarginalLikelihood, bayesianize


def train(model: torch.nn.Module, loader: list[dict[str, torch.Tensor]], epochs: int) -> None:
    """The ordinary loop; nothing in it is Bayesian."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        name = base_from_command_line(__doc__, work)
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=2, id2label={0: "complaint", 1: "praise"}
        )
        model = get_peft_model(model, HybridConfig(task_type="SEQ_CLS"))
        loader = batches(tokenizer)
        train(model, loader, epochs=10)

        # Forty rows are learnt by heart, and there the evidence makes a better prior than the
        # careful default; with more rows, leave prior= out.
        bayes = bayesianize(model, loader, prior=MarginalLikelihood())
        print(bayes.explain())

        batch = tokenizer(UNSEEN, padding=True, return_tensors="pt")
        prediction = bayes.predict(batch)
        for row, text in enumerate(UNSEEN):
            label = model.config.id2label[int(prediction.predicted[row])]
            probability = prediction.probabilities[row].max()
            print(
                f"{label:>9} {probability:.2f}  total {prediction.total[row]:.3f} nats, "
                f"epistemic {prediction.epistemic[row]:.3f}  {text}"
            )

        bayes.save_pretrained(work / "posterior")
        again = BayesianPeft.from_pretrained(work / "posterior")
        gap = (again.predict(batch).probabilities - prediction.probabilities).abs().max()
        print(f"Saved and loaded: probabilities differ by {gap:.1g}.")


if __name__ == "__main__":
    main()
