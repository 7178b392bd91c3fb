"""Train, bayesianize, compare, save and reload, on messages that come with the package."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from posthoc_bhpeft.checkpoints import resolve_model, write_json
from posthoc_bhpeft.data import RowSettings, TextData, load_rows, make_loader
from posthoc_bhpeft.folders import DEMO, check_output, whole_folder
from posthoc_bhpeft.training import TrainingResult, TrainingSettings, train

if TYPE_CHECKING:
    from posthoc_bhpeft.api import BayesianPeft, Predictive
    from posthoc_bhpeft.data import LengthOrder
    from posthoc_bhpeft.predictive import Prediction

TEST_SHARE = 0.4
EPOCHS = 10
MAX_LENGTH = 96
SHOWN = 5
RESULTS_FILE = "results.json"
REPORT_FOLDER = "report"


class Show(Protocol):
    """Where the demonstration speaks."""

    @property
    def progress(self) -> bool:
        """Whether progress bars are wanted."""
        ...

    def say(self, text: str = "") -> None:
        """Write a line."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table."""
        ...


def run_demo(
    output: str | Path, *, seed: int, show: Show, settings: TrainingSettings | None = None
) -> dict[str, Any]:
    """The whole demonstration; what it wrote before into `output` is replaced, nothing else.

    Args:
        output: folder for checkpoint, data, figures and results.json.
        seed: of the split and the training.
        show: where to speak.
        settings: how to train; None takes the settings of the demonstration.

    Returns:
        The figures, as in results.json.

    Raises:
        CheckpointError: the packaged model is not installed.
        ConfigError: `output` holds other files, or matplotlib is missing.
    """
    started = time.perf_counter()
    check_output(output, overwrite=True, kind=DEMO)
    resolve_model("minilm")
    data = satisfaction()
    training, rest = data.split_off(TEST_SHARE, seed)
    # The page is for reading elsewhere: no path of this machine.
    test = replace(rest, source="customer messages of the demo", split="held out")
    show.say(
        f"{len(data)} customer messages: {len(training)} to learn from, {len(test)} to be tested on"
    )
    settings = settings or TrainingSettings(epochs=EPOCHS, max_length=MAX_LENGTH, seed=seed)
    place = Path(output).resolve()
    rows = RowSettings(source=str(place / "data"), validation=False, seed=seed)
    show.say("\n1. Training: adapter, LoRA and prefix together, on MiniLM")
    result = train("minilm", training, settings=settings, rows=rows, progress=show.progress)
    with whole_folder(output, overwrite=True, kind=DEMO) as folder:
        _write_data(folder / "data", training, test)
        result.save(folder / "checkpoint")
        figures = _compare(result, training, test, folder, show)
        figures = {**figures, "seconds": round(time.perf_counter() - started, 1)}
        write_json(folder / RESULTS_FILE, figures)
    show.say(f"\nDone in {figures['seconds']:.0f} s. In {output}:")
    show.say("  report/report.html                   the audit: open it in a browser")
    show.say("  reliability.png, risk_coverage.png   the figures")
    show.say("  checkpoint/                          adapter and posterior, to load again:")
    show.say(f'      BayesianPeft.from_pretrained("{output}/checkpoint")')
    show.say(f"      bhpeft predict {output}/checkpoint --output preds")
    return {"output": str(output), **figures}


def satisfaction() -> TextData:
    """The 600 labelled messages that come with the package.

    How satisfied is the customer: dissatisfied, mixed or satisfied? Many are honestly ambiguous.
    """
    with resources.as_file(resources.files("posthoc_bhpeft.demo") / "satisfaction.jsonl") as path:
        data = load_rows(path, text_column="text", label_column="label")
    names = dict(zip(data.labels or (), data.columns["label_name"], strict=True))
    return replace(data, label_names=tuple(str(names[label]) for label in sorted(names)))


def _compare(
    result: TrainingResult, training: TextData, test: TextData, folder: Path, show: Show
) -> dict[str, Any]:
    from posthoc_bhpeft.api import BayesianPeft, bayesianize
    from posthoc_bhpeft.predictive import MAP

    def loader(rows: TextData) -> Any:
        return make_loader(rows, result.tokenizer, max_length=MAX_LENGTH, by_length=True)

    def predict(bayes: BayesianPeft, predictive: Predictive | None = None) -> Prediction:
        batches = loader(test)
        found = bayes.predict_loader(batches, predictive, progress=show.progress)
        return cast("LengthOrder", batches.sampler).restore_prediction(found)

    show.say("\n2. One call: the posterior over everything that was trained")
    bayes = bayesianize(result.model, loader(training), progress=show.progress)
    show.say(bayes.explain())
    bayes.save_pretrained(folder / "checkpoint")
    point, ours = predict(bayes, MAP()), predict(bayes)
    show.say("\n3. Messages it has never seen")
    figures = _measure(point, ours, show)
    _draw(point, ours, folder)
    show.say("4. The least certain of them, and why (nats)")
    _show_uncertain(ours, test, show)
    show.say("5. The audit: may it answer by itself?")
    _audit(point, ours, test, folder, show)
    show.say("6. Saved, and loaded again")
    again = predict(BayesianPeft.from_pretrained(folder / "checkpoint"))
    figures["reloaded"] = _compare_reloaded(again, ours, show)
    return figures


def _measure(point: Prediction, ours: Prediction, show: Show) -> dict[str, Any]:
    from posthoc_bhpeft.audit import negative_log_likelihood, paired_bootstrap, summary

    assert point.probabilities is not None
    assert ours.probabilities is not None
    assert ours.labels is not None
    before = summary(point.probabilities, ours.labels)
    after = summary(ours.probabilities, ours.labels)
    rejected = f"errors left after rejecting the {before.rejected} least certain"
    rows: list[tuple[str, Callable[[Any], str]]] = [
        ("accuracy", lambda m: f"{m.accuracy:.1%}"),
        ("NLL (nats)", lambda m: f"{m.nll:.3f}"),
        ("ECE", lambda m: f"{m.ece:.3f}"),
        ("Brier score", lambda m: f"{m.brier:.3f}"),
        (rejected, lambda m: f"{m.errors_left:.0f} of {m.errors}"),
    ]
    show.table("", ["", "MAP", "Bayes"], [[name, text(before), text(after)] for name, text in rows])
    change = paired_bootstrap(
        negative_log_likelihood, point.probabilities, ours.probabilities, ours.labels
    )
    show.say(
        f"NLL, Bayes less MAP: {change.estimate:+.3f} "
        f"(95 % of resampled tests between {change.low:+.3f} and {change.high:+.3f})\n"
    )
    return {
        "map": before.to_dict(),
        "bayes": after.to_dict(),
        "nll_change": {"estimate": change.estimate, "low": change.low, "high": change.high},
    }


def _draw(point: Prediction, ours: Prediction, folder: Path) -> None:
    from posthoc_bhpeft.audit import reliability_diagram, risk_coverage_plot

    both: dict[str, Any] = {"MAP": point.probabilities, "Bayes": ours.probabilities}
    assert ours.labels is not None
    figures = {
        "reliability.png": reliability_diagram(both, ours.labels),
        "risk_coverage.png": risk_coverage_plot(both, ours.labels),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)


def _audit(point: Prediction, ours: Prediction, test: TextData, folder: Path, show: Show) -> None:
    from posthoc_bhpeft.audit import Plan, Predictions, audit, verdict, write_report

    found = audit(
        Predictions.of(ours, test),
        rivals={"MAP": Predictions.of(point, test)},
        rows=test,
        name="Bayes",
        plan=Plan(max_error=0.2),
    )
    write_report(found, folder / REPORT_FOLDER)
    show.say(f"{verdict(found)}\n")


def _show_uncertain(ours: Prediction, test: TextData, show: Show) -> None:
    names = test.label_names or ()
    assert ours.probabilities is not None
    assert test.labels is not None
    for row in ours.total.argsort(descending=True)[:SHOWN].tolist():
        text, label = test.texts[row], names[int(test.labels[row])]
        shares = ", ".join(
            f"{name} {share:.0%}"
            for name, share in zip(names, ours.probabilities[row].tolist(), strict=True)
        )
        show.say(f'  "{text if len(text) <= 160 else text[:157] + "..."}"')
        show.say(
            f"    {shares} (labelled {label}); uncertainty {ours.total[row]:.2f} = "
            f"{ours.aleatoric[row]:.2f} in the message + {ours.epistemic[row]:.2f} in the model\n"
        )


def _compare_reloaded(loaded: Prediction, ours: Prediction, show: Show) -> dict[str, float]:
    from posthoc_bhpeft.audit import summary

    assert loaded.probabilities is not None
    assert ours.probabilities is not None
    assert loaded.labels is not None
    difference = float((loaded.probabilities - ours.probabilities).abs().max())
    nll = summary(loaded.probabilities, loaded.labels).nll
    show.say(f"  NLL {nll:.3f} again; largest difference of any probability: {difference:.1e}")
    return {"nll": nll, "largest_difference": difference}


def _write_data(folder: Path, training: TextData, test: TextData) -> None:
    """The two splits as files, so that `bhpeft fit` and `predict` work on the demonstration."""
    folder.mkdir()
    for split, rows in (("train", training), ("test", test)):
        lines = [
            json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
            for text, label in zip(rows.texts, rows.labels or (), strict=True)
        ]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(folder / "meta.json", {"label_names": list(training.label_names or ())})
