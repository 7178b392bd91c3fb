"""Calibration of one ordinarily trained checkpoint, by every way of predicting from it.

For each set and seed: train a hybrid MiniLM on a few hundred rows as `bhpeft train` does,
bayesianize it on the same rows, and score held-out rows. No method but temperature scaling sees
any other row; that one is given 200 further labelled rows, as a yardstick.

    python benchmarks/calibration.py --data DIR

where DIR holds one folder a set (`sst2`, `ag_news`, `airline_tweets`) with `train` and `test`
files. Trained checkpoints are kept under `--output` and used again.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from posthoc_bhpeft import (
    MAP,
    BayesianPeft,
    LogOdds,
    MonteCarlo,
    bayesianize,
)
from posthoc_bhpeft.audit import metrics
from posthoc_bhpeft.checkpoints import (
    load_adapter,
    load_tokenizer,
    read_json,
    write_json,
    write_text,
)
from posthoc_bhpeft.data import RowSettings, TextData, choose_rows, make_loader, read_rows
from posthoc_bhpeft.data.sources import open_source
from posthoc_bhpeft.evidence import best_precision
from posthoc_bhpeft.predictive.links import Link
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum, covariance_spectra
from posthoc_bhpeft.training import TrainingSettings, train

RESULTS = Path(__file__).parent / "results" / "calibration.md"
README = Path(__file__).parents[1] / "README.md"
EXTRA_ROWS = 200
MAX_LENGTH = 64
COLUMNS = ("accuracy", "nll", "ece", "brier", "aurc")


@dataclass(frozen=True)
class Cell:
    """One training run: a set, a seed, and whether training stops early."""

    name: str
    seed: int
    early_stopping: bool

    @property
    def label(self) -> str:
        """Name of the folder and of the row."""
        return f"{self.name}-{'early' if self.early_stopping else 'full'}-{self.seed}"


def rows_of(cell: Cell, options: argparse.Namespace) -> tuple[TextData, TextData | None, TextData]:
    """Training rows, rows for early stopping or None, and `EXTRA_ROWS` further training rows."""
    settings = RowSettings(
        str(options.data / cell.name),
        max_rows=options.rows + EXTRA_ROWS,
        max_validation_rows=200,
        validation=cell.early_stopping,
        seed=cell.seed,
    )
    chosen = choose_rows(settings)
    extra = chosen.train.take(range(options.rows, len(chosen.train)))
    return chosen.train.take(range(options.rows)), chosen.validation, extra


def test_rows(cell: Cell, options: argparse.Namespace) -> TextData:
    """The same held-out rows for every seed."""
    settings = RowSettings(str(options.data / cell.name))
    rows = read_rows(settings, open_source(settings.source), "test")
    return rows.draw(options.test_rows, 0)


def trained(cell: Cell, options: argparse.Namespace) -> Path:
    """Folder of the cell's checkpoint; trained unless it is there."""
    folder = Path(options.output) / cell.label
    if (folder / "training.json").is_file():
        return folder
    data, validation, _ = rows_of(cell, options)
    settings = TrainingSettings(seed=cell.seed, max_length=MAX_LENGTH)
    result = train("minilm", data, validation=validation, settings=settings, progress=False)
    result.save(folder)
    return folder


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The scalar `T` with the lowest NLL of `softmax(logits / T)` (Guo et al. 2017)."""
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits.double() / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_temperature.exp())


def score(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of one method on one cell."""
    found = metrics.summary(probabilities, labels)
    return {name: float(getattr(found, name)) for name in COLUMNS}


def spectra_of(bayes: BayesianPeft, loader: Any) -> list[CovarianceSpectrum]:
    """Covariances of held-out rows at every prior precision, from one pass."""
    posterior = bayes.posterior
    return list(
        covariance_spectra(bayes.model, posterior.blocks, posterior.bases, bayes.likelihood, loader)
    )


def probabilities_at(spectra: Sequence[CovarianceSpectrum], precision: float, link: Link) -> Tensor:
    """Predictive probabilities of all rows for one prior precision."""
    return torch.cat([link.softmax(part.outputs, part.at(precision)) for part in spectra])


def run(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Every method on one cell."""
    folder = trained(cell, options)
    tokenizer, model = load_tokenizer(folder), load_adapter(folder)
    data, _, extra = rows_of(cell, options)

    def loader(rows: TextData) -> Any:
        return make_loader(rows, tokenizer, max_length=MAX_LENGTH, batch_size=16, by_length=True)

    held_out = loader(test_rows(cell, options))
    bayes = bayesianize(model, loader(data), progress=False)
    point = bayes.predict_loader(held_out, MAP(), progress=False)
    ours = bayes.predict_loader(held_out, progress=False)
    labels, logits = point.labels, point.logits
    fitted = bayes.predict_loader(loader(extra), MAP(), progress=False)
    scale = temperature(fitted.logits, fitted.labels)
    spectra = spectra_of(bayes, held_out)
    plain = best_precision(list(bayes.posterior.evidence().spectra.values()))
    grid = [10 ** (k / 4) for k in range(-4, 17)]
    nll = [
        metrics.negative_log_likelihood(probabilities_at(spectra, d, LogOdds()), labels)
        for d in grid
    ]
    best = grid[nll.index(min(nll))]
    difference = metrics.paired_bootstrap(
        metrics.negative_log_likelihood, point.probabilities, ours.probabilities, labels
    )
    methods = {
        "MAP": score(point.probabilities, labels),
        f"temperature ({EXTRA_ROWS} more rows)": score((logits / scale).softmax(-1), labels),
        "ours (default)": score(ours.probabilities, labels),
        "evidence, one precision, sampled softmax": score(
            probabilities_at(spectra, plain, MonteCarlo()), labels
        ),
        "best precision in hindsight": score(probabilities_at(spectra, best, LogOdds()), labels),
    }
    return {
        "cell": cell.label,
        "training_nll": -bayes.posterior.log_likelihood / bayes.posterior.n_rows,
        "test_rows": len(labels),
        "temperature": scale,
        "precision": {
            "ours": sorted(set(bayes.posterior.prior.precision.values())),
            "evidence": plain,
            "best": best,
        },
        "nll_difference": [difference.estimate, difference.low, difference.high],
        "methods": methods,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: one block a set, mean and standard deviation over seeds."""
    lines = [
        "| set | method | accuracy | NLL | ECE | Brier | AURC |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    sets = list(dict.fromkeys(r["cell"].rpartition("-")[0] for r in results))
    for name in sets:
        mine = [r for r in results if r["cell"].rpartition("-")[0] == name]
        for method in mine[0]["methods"]:
            cells = []
            for column in COLUMNS:
                values = [r["methods"][method][column] for r in mine]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
            lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def detail(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: every cell, with the paired interval of ours less MAP."""
    lines = [
        "| cell | training NLL | NLL of MAP | NLL of ours | ratio | ours less MAP, 95 % interval | "
        "precision ours / evidence / best | temperature |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        plain, ours = r["methods"]["MAP"]["nll"], r["methods"]["ours (default)"]["nll"]
        estimate, low, high = r["nll_difference"]
        found = r["precision"]
        chosen = " to ".join(f"{value:.3g}" for value in (found["ours"][0], found["ours"][-1]))
        lines.append(
            f"| {r['cell']} | {r['training_nll']:.3f} | {plain:.4f} | {ours:.4f} | "
            f"{ours / plain:.3f} | {estimate:+.4f} ({low:+.4f} to {high:+.4f}) | "
            f"{chosen} / {found['evidence']:.3g} / {found['best']:.3g} | {r['temperature']:.2f} |"
        )
    return "\n".join(lines)


def report(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The page that is committed."""
    first = results[0]
    return f"""# Calibration

`{shlex.join(["python", *sys.argv]).replace(str(options.data), "DIR")}`

Hybrid MiniLM (LoRA, adapter, prefix), {options.rows} training rows, {first["test_rows"]} held-out
rows, texts cut at {MAX_LENGTH} tokens; mean ± standard deviation over {len(options.seeds)} seeds
(weights, rows drawn and their order). `full` trains all epochs, `early` stops on 200 validation
rows. Only temperature scaling sees labels beyond the training rows.
torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()} CPU.

{table(results)}

Cell by cell:

{detail(results)}
"""


def update_readme(results: Sequence[dict[str, Any]]) -> None:
    """Put the table into the README, between its markers."""
    start, end = "<!-- results:calibration -->", "<!-- /results:calibration -->"
    before, _, rest = README.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    write_text(README, f"{before}{start}\n{table(results)}\n{end}{after}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    parser.add_argument("--sets", nargs="+", default=["sst2", "ag_news", "airline_tweets"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=640, help="training rows")
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--protocols", nargs="+", default=["full", "early"])
    parser.add_argument("--output", default="outputs/calibration", help="checkpoints go here")
    parser.add_argument("--reuse", action="store_true", help="keep the scores that are there")
    parser.add_argument("--train-only", action="store_true", help="train and stop")
    return parser.parse_args(arguments)


def main() -> None:
    """Run every cell and write the page."""
    options = parse()
    cells = [
        Cell(name, seed, protocol == "early")
        for protocol in options.protocols
        for name in options.sets
        for seed in options.seeds
    ]
    results = []
    for cell in cells:
        folder = trained(cell, options)
        if options.train_only:
            continue
        kept = folder / "calibration.json"
        if not (options.reuse and kept.is_file()):
            write_json(kept, run(cell, options))
        results.append(read_json(kept))
        print(detail(results[-1:]).splitlines()[-1], flush=True)
    if results:
        write_text(RESULTS, report(results, options))
        update_readme(results)
        print(report(results, options))


if __name__ == "__main__":
    main()
