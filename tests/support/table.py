"""The support table of docs/support.md, from running every case.

python -m tests.support.table            # print it
python -m tests.support.table --write    # put it into docs/support.md
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.errors import BhpeftError
from tests.support.cases import Case, batches, cases, loaded

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
BEGIN, END = "<!-- table: written by python -m tests.support.table --write -->", "<!-- /table -->"

NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "gemma2": "Gemma 2",
    "t5": "T5",
    "bart": "BART",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        message: Of the refusal; empty where the case is supported.
    """

    message: str = ""


def run(case: Case) -> Outcome:
    """Load, fit, predict, save, load again: the same predictions to the last bit, or a refusal."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = loaded(case, Path(folder) / "adapter")
        loader = batches(case, model)
        try:
            bayes = bayesianize(model, loader, progress=False)
        except BhpeftError as error:
            return Outcome(str(error))
        first = bayes.predict(loader[0])
        bayes.save_pretrained(Path(folder) / "posterior")
        again = BayesianPeft.from_pretrained(Path(folder) / "posterior").predict(loader[0])
        for name, column in first.columns().items():
            other = again.columns()[name]
            if (column is None) != (other is None) or not (
                column is None or torch.equal(column, other)
            ):
                raise AssertionError(f"{case.name}: {name} is another after loading")
    return Outcome()


def row(case: Case, outcome: Outcome) -> str:
    """One line of the table."""
    answer = "refused" if outcome.message else "yes"
    return f"| {case.method} | {case.detail} | {NAMES[case.family]} | {answer} |"


def quotation(case: Case, outcome: Outcome) -> str:
    """What a refused case says, for the section below the table."""
    title = " ".join(filter(None, (case.method, case.detail)))
    return f"**{title}**\n\n```text\n{outcome.message}\n```"


def table(outcomes: Sequence[tuple[Case, Outcome]]) -> str:
    """Everything between the two marks of the page."""
    head = ["| method | | model | supported |", "| --- | --- | --- | --- |"]
    rows = [row(case, outcome) for case, outcome in outcomes]
    refused = [quotation(case, outcome) for case, outcome in outcomes if outcome.message]
    good = sum(not outcome.message for _, outcome in outcomes)
    total = f"{good} of {len(rows)} rows are supported. The others say:"
    return "\n\n".join(["\n".join([*head, *rows]), total, *refused])


def written() -> str:
    """What stands between the marks now."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    """Print the table, or write it into the page."""
    made = table([(case, run(case)) for case in cases()])
    if "--write" not in sys.argv[1:]:
        sys.stdout.write(made + "\n")
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    page = f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
