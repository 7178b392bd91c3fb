"""Learn from reviews that come in two seasons, the second with a label that nobody knew before.

python examples/stream.py            real MiniLM weights, about two minutes
python examples/stream.py --tiny     a random model, half a minute

No row of the first season is needed in the second, and a stream that was stopped goes on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rows import LABELS, TEXTS, UNSEEN
from tiny import base_from_command_line

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.streams import Round, Stream, StreamReport
from posthoc_bhpeft.training import TrainingSettings

QUESTIONS = """Does the zip open from both sides?
Is the seat made for tall people?
How long does the paper last?
Which bag goes with the lid?
Can I order the colour that is in the picture?
Do you answer letters on Sunday?
How loud is it in a bedroom?
Is the handle metal or plastic?
When does the film end?
Would the shop send it for a day?"""


def rows(season: int) -> TextData:
    """Every second review; in the second season questions too."""
    texts, labels = TEXTS[season::2], LABELS[season::2]
    names: tuple[str, ...] = ("complaint", "praise")
    if season == 1:
        questions = QUESTIONS.splitlines()
        texts, labels = texts + questions, labels + [2] * len(questions)
        names = (*names, "question")
    return TextData(tuple(texts), labels=tuple(labels), label_names=names, source="the examples")


def show(report: StreamReport) -> None:
    """Accuracy on each season after each season, and where the last posterior comes from."""
    for name, line in report.accuracies().items():
        after = "  ".join("    " if share is None else f"{share:4.0%}" for share in line)
        print(f"{name:>7}: {after}")
    last = report.rounds[-1]
    print(f"{last.folder} comes from {last.parent}; outputs: {', '.join(last.labels.names)}.")


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = base_from_command_line(__doc__, work)
        settings = TrainingSettings(
            epochs=12, learning_rate=5e-3, batch_size=4, max_length=32, weight_decay=0.0
        )
        rounds = []
        for season, name in enumerate(("spring", "summer")):
            train, test = rows(season).split_off(0.2, seed=0)
            rounds.append(Round(name, train, test))

        stream = Stream(work / "reviews", base, settings, progress=False)
        stream.run(rounds[:1])
        report = stream.run(rounds)  # spring is there already and is not learnt again
        show(report)

        asked = TextData((*UNSEEN, "Is the paper white?"))
        prediction = stream.predict(asked)
        for row, text in enumerate(asked.texts):
            label = stream.label_names()[int(prediction.predicted[row])]
            probability = prediction.probabilities[row].max()
            print(
                f"{label:>9} {probability:.2f}  epistemic {prediction.epistemic[row]:.3f}  {text}"
            )

        # Another process would find the same: nothing is trained, nothing has changed.
        again = Stream.open(work / "reviews", progress=False).run(rounds)
        print(f"Opened again: the same scores: {again.scores == report.scores}.")


if __name__ == "__main__":
    main()
