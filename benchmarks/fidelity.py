"""How close is each curvature to the exact GGN? Relative Frobenius error on trained tiny hybrids.

    python benchmarks/fidelity.py --output benchmarks/results/fidelity.md

A BERT and a Llama with random weights are tuned with LoRA, adapters and prefix together, in
float64, on texts of made-up tokens of different lengths, until they do their task. Then, block by
block, `KroneckerGGN`, classical K-FAC and laplace-torch's K-FAC are compared with the exact GGN.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from logits import Batch, Logits
from pages import markdown, origin, publish, spread
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from posthoc_bhpeft import (
    KFAC,
    Block,
    Categorical,
    Contrasts,
    DenseGGN,
    HybridConfig,
    Kind,
    KroneckerGGN,
    RandomSigns,
    discover,
)
from posthoc_bhpeft.curvature import Curvature, fit_curvature

VOCABULARY, CLASSES, HIDDEN = 40, 3, 32
PAD, FIRST_MARKER, FIRST_WORD = 0, 1, 4
Matrices = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """Sizes of one run.

    Attributes:
        initializer_range: Standard deviation of the base model's random weights; 0.02 is what
            transformers takes for both families.
        rows: The curvature is summed over the last that many rows of the training data.
    """

    steps: int = 150
    learning_rate: float = 5e-3
    initializer_range: float = 0.02
    rows: int = 256
    batch_size: int = 32
    positions: int = 16


def build(family: str, seed: int, setting: Setting) -> PeftModel:
    """A hybrid on a tiny random base, float64."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": CLASSES,
        "pad_token_id": PAD,
        "initializer_range": setting.initializer_range,
    }
    config = (
        BertConfig(**sizes) if family == "bert" else LlamaConfig(**sizes, num_key_value_heads=2)
    )
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_config(config)
    hybrid = HybridConfig(task_type="SEQ_CLS", r=4, bottleneck_size=8, num_virtual_tokens=4)
    return get_peft_model(base, hybrid).double().eval()


def draw(setting: Setting, generator: torch.Generator) -> list[Batch]:
    """Batches of texts: which of three marker words comes up most often is the label.

    There is a fresh batch for every step, so nothing is memorised. One label in ten is drawn at
    random, so that the model has something to be uncertain about.
    """
    n_rows = setting.steps * setting.batch_size
    size = (n_rows, setting.positions)
    lengths = torch.randint(
        setting.positions // 2, setting.positions + 1, (n_rows, 1), generator=generator
    )
    words = torch.randint(FIRST_WORD, VOCABULARY, size, generator=generator)
    labels = torch.randint(0, CLASSES, (n_rows,), generator=generator)
    marked = torch.rand(size, generator=generator)
    other = torch.randint(0, CLASSES, size, generator=generator)
    words = torch.where(marked < 0.25, FIRST_MARKER + labels[:, None], words)
    words = torch.where((marked >= 0.25) & (marked < 0.4), FIRST_MARKER + other, words)
    mask = (torch.arange(setting.positions) < lengths).long()
    noisy = torch.rand(n_rows, generator=generator) < 0.1
    labels = torch.where(noisy, other[:, 0], labels)
    columns = (words * mask, mask, labels)
    parts = [column.split(setting.batch_size) for column in columns]
    return [
        {"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(*parts, strict=True)
    ]


def train(model: PeftModel, batches: Sequence[Batch], setting: Setting) -> None:
    """AdamW on the hybrid's own weights, one step a batch."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.learning_rate, weight_decay=0.01)
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def mean_loss(model: PeftModel, batches: Sequence[Batch]) -> float:
    """Mean loss in nats of the batches that the curvature is summed over."""
    with torch.no_grad():
        return statistics.mean(float(model(**batch).loss) for batch in batches)


def dense_blocks(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch], estimator: Curvature
) -> Matrices:
    """The `(P, P)` matrix of each block under one estimator."""
    fitted = fit_curvature(
        model,
        blocks,
        batches,
        Categorical(),
        estimator,
        generator=torch.Generator().manual_seed(0),
    )
    return {name: operator.dense() for name, operator in fitted.operators.items()}


def laplace_blocks(model: PeftModel, batches: Sequence[Batch]) -> Matrices:
    """laplace-torch's own Kronecker factors of the LoRA part; it refuses the prefix."""
    from laplace import Laplace

    from posthoc_bhpeft.interop.laplace import LaplaceLoader

    part = copy.deepcopy(model)
    for name, parameter in part.named_parameters():
        parameter.requires_grad_("lora_" in name)
    # The weights of other modules keep their blocks out; LoRA is what both can see.
    names = [name for name, parameter in part.named_parameters() if parameter.requires_grad]
    la: Any = Laplace(Logits(part), "classification", "all", "kron")
    la.fit(LaplaceLoader(batches))
    pairs = zip(names, la.H_facs.kfacs, strict=True)
    return {name: torch.kron(left, right) for name, (left, right) in pairs}


def nearest_kronecker(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """The nearest Kronecker product to `(P, P)`: no product can be closer (Van Loan 1993)."""
    p, q = shape
    rearranged = matrix.reshape(p, q, p, q).permute(0, 2, 1, 3).reshape(p * p, q * q)
    left, values, right = torch.linalg.svd(rearranged, full_matrices=False)
    return torch.kron((values[0] * left[:, 0]).reshape(p, p), right[0].reshape(q, q))


def errors(estimate: Matrices, exact: Matrices, blocks: Sequence[Block]) -> dict[Kind, float]:
    """`|estimate - exact| / |exact|` over the weight matrices of each kind together.

    Vectors (biases) are left out: there `KroneckerGGN` is exact. So are kinds whose GGN is zero:
    in a base with very small weights, every unit of an adapter may end up switched off.
    """
    found = {}
    for kind in Kind:
        names = [b.name for b in blocks if b.kind is kind and b.name in estimate and b.shape[1] > 1]
        size = sum(float(exact[n].square().sum()) for n in names)
        if size > 0:
            off = sum(float((estimate[n] - exact[n]).square().sum()) for n in names)
            found[kind] = (off / size) ** 0.5
    return found


METHODS: Mapping[str, Curvature] = {
    "ours": KroneckerGGN(Contrasts()),
    "ours, random signs": KroneckerGGN(RandomSigns()),
    "K-FAC expand": KFAC(directions=Contrasts()),
    "K-FAC reduce": KFAC(reduce=True, directions=Contrasts()),
}


def compare(family: str, seed: int, setting: Setting) -> tuple[float, dict[str, dict[Kind, float]]]:
    """Train one model; its loss, and the errors of every method by kind."""
    model = build(family, seed, setting)
    data = draw(setting, torch.Generator().manual_seed(seed))
    train(model, data, setting)
    batches = data[-setting.rows // setting.batch_size :]
    loss = mean_loss(model, batches)
    blocks = discover(model)
    exact = dense_blocks(model, blocks, batches, DenseGGN())
    found = {
        name: errors(dense_blocks(model, blocks, batches, method), exact, blocks)
        for name, method in METHODS.items()
    }
    found["laplace-torch"] = errors(laplace_blocks(model, batches), exact, blocks)
    best = {b.name: nearest_kronecker(exact[b.name], b.shape) for b in blocks if b.shape[1] > 1}
    found["nearest product"] = errors(best, exact, blocks)
    return loss, found


Run = dict[str, dict[Kind, float]]
KINDS = (Kind.LORA, Kind.ADAPTER, Kind.PREFIX, Kind.HEAD)


def values(runs: Sequence[Run], method: str, kind: Kind) -> list[float]:
    """The errors of one method on one kind, of the seeds that have them."""
    return [run[method][kind] for run in runs if kind in run[method]]


def table_rows(family: str, runs: Sequence[Run]) -> list[list[str]]:
    """Those of one model: a row a kind, a column a method."""
    rows = []
    for kind in KINDS:
        found = [values(runs, method, kind) for method in runs[0]]
        rows.append([family, kind.value, *(spread(one, 3) if one else "–" for one in found)])
    return rows


def verdicts(family: str, runs: Sequence[Run]) -> list[str]:
    """Each target of the project, and whether it was met on the mean over seeds."""
    checks: list[tuple[str, bool]] = []
    dead = [kind.value for kind in KINDS if not values(runs, "ours", kind)]
    for kind in KINDS:
        if kind.value in dead:
            continue
        ours, expand, reduce = (
            statistics.mean(values(runs, method, kind))
            for method in ("ours", "K-FAC expand", "K-FAC reduce")
        )
        share = 0.5 if kind in (Kind.LORA, Kind.ADAPTER) else 1.0
        if family == "BERT" and share < 1:
            checks.append((f"{kind.value} {ours:.3f}, at most 0.15", ours <= 0.15))
        for name, kfac in (("expand", expand), ("reduce", reduce)):
            text = f"{kind.value} {ours / kfac:.2f} of K-FAC {name}, at most {share:g}"
            checks.append((text, ours <= share * kfac))
    lines = [f"- {family}, {text}: {'met' if met else '**missed**'}" for text, met in checks]
    return lines + [
        f"- {family}, {kind}: not judged, its gradients are all zero (units switched off)"
        for kind in dead
    ]


def above_nearest(runs: Sequence[Run]) -> float:
    """The largest ratio, over blocks of a kind, of our mean error to that of the best product."""
    return max(
        statistics.mean(values(runs, "ours", kind))
        / statistics.mean(values(runs, "nearest product", kind))
        for kind in KINDS
        if values(runs, "ours", kind)
    )


def section(setting: Setting, seeds: int, show: Callable[[str], None]) -> list[str]:
    """Both families under one setting: table and verdicts."""
    rows, lines, losses = [], [], []
    methods: list[str] = []
    for family, label in (("bert", "BERT"), ("llama", "Llama")):
        runs = []
        for seed in range(seeds):
            loss, found = compare(family, seed, setting)
            show(f"{setting.initializer_range} {label} seed {seed}: loss {loss:.3f}")
            runs.append(found)
            losses.append(f"{label} {loss:.3f}")
        methods = list(runs[0])
        rows += table_rows(label, runs)
        lines += verdicts(label, runs)
        lines.append(
            f"- {label}: no single Kronecker product could do much better; ours is at most "
            f"{above_nearest(runs):.2f} times the error of the nearest one"
        )
    return [
        f"## Base models of random weights with standard deviation {setting.initializer_range:g}",
        "",
        f"{setting}; mean ± standard deviation over {seeds} seeds. Mean loss in nats "
        "(1.099 is chance; the noise in the labels leaves about 0.3): " + ", ".join(losses) + ".",
        "",
        markdown(["model", "blocks", *methods], rows),
        "",
        *lines,
        "",
    ]


def report(settings: Sequence[Setting], seeds: int, show: Callable[[str], None]) -> str:
    """Run everything and write it up."""
    libraries = ("torch", "transformers", "peft", "laplace-torch", "curvlinops-for-pytorch")
    lines = [
        "# Fidelity: relative Frobenius error to the exact GGN of each block",
        "",
        origin(*libraries),
        "",
        "Weight matrices only; for vectors (biases) ours is exact. *ours* is `KroneckerGGN` with "
        "contrasts (exact output directions); *nearest product* is the best that any single "
        "Kronecker product can do. laplace-torch's kron backend refuses prefixes, so it is fitted "
        "on the LoRA tensors alone, the rest frozen.",
        "",
    ]
    for setting in settings:
        lines += section(setting, seeds, show)
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Setting.steps)
    parser.add_argument("--learning-rate", type=float, default=Setting.learning_rate)
    parser.add_argument("--rows", type=int, default=Setting.rows)
    parser.add_argument("--initializer-range", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = [
        Setting(arguments.steps, arguments.learning_rate, spread_of_weights, arguments.rows)
        for spread_of_weights in arguments.initializer_range
    ]
    text = report(settings, arguments.seeds, lambda line: print(line, file=sys.stderr))
    publish(text, arguments.output)


if __name__ == "__main__":
    main()
