"""The same fits for one process and for several: what each takes, and what is kept of it.

`python -m torch.distributed.run --nproc-per-node=2 -m tests.distributed.cases FOLDER` runs every
case in two processes over gloo; each writes what it got, and the tests compare it with one process.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from posthoc_bhpeft import (
    KFAC,
    BayesianPeft,
    Bernoulli,
    Contrasts,
    DenseGGN,
    DiagonalGGN,
    FixedPrecision,
    Gaussian,
    HeldOut,
    KroneckerGGN,
    LeaveOneOut,
    MarginalLikelihood,
    MatchedPrecision,
    RandomSigns,
    Resume,
    Shard,
    Subsample,
    bayesianize,
)
from tests.hybrid.families import tiny_batch, tiny_model
from tests.models import hybrid, mlp
from tests.tuned import tuned

PAGE = Path(__file__).resolve().parents[2] / "docs" / "devices.md"

ROWS = 13
"""Odd, so that two processes cannot have equally many without repeating one."""

EXACT = KroneckerGGN(directions=Contrasts())


def rows_of(model: nn.Module, n_rows: int = ROWS) -> list[dict[str, Tensor]]:
    """Rows of one length, for a `DataLoader`."""
    batches = [tiny_batch(model, seed=seed) for seed in range(-(-n_rows // 4))]
    rows = [{k: v[i] for k, v in b.items()} for b in batches for i in range(len(b["labels"]))]
    return rows[:n_rows]


def whole(rows: list[Any], batch_size: int = 2) -> DataLoader[Any]:
    """Every row, for one process."""
    return DataLoader(rows, batch_size=batch_size)


def parts(rank: int, n_batches: tuple[int, int], rows: list[Any]) -> Shard:
    """The first batches for the first process, the next for the second."""
    batches = list(whole(rows))
    start = 0 if rank == 0 else n_batches[0]
    return Shard(batches[start : start + n_batches[rank]])


def sampled(rank: int, rows: list[Any], **settings: Any) -> DataLoader[Any]:
    """As torch divides rows: the first ones come twice."""
    return DataLoader(rows, batch_size=2, sampler=DistributedSampler(rows, **settings))


def prepared(rank: int, rows: list[Any], shuffle: bool = False, **settings: Any) -> Any:
    """As accelerate divides rows; it asks for one seed of a seedable sampler, else sends one."""
    set_seed(0 if settings.get("use_seedable_sampler") else rank)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))
    return accelerator.prepare_data_loader(DataLoader(rows, batch_size=2, shuffle=shuffle))


Divide = Callable[[int, list[Any]], Any]

DIVIDED: dict[str, Divide] = {
    "ragged": lambda rank, rows: parts(rank, (5, 2), rows),
    "first empty": lambda rank, rows: parts(rank, (0, 7), rows),
    "second empty": lambda rank, rows: parts(rank, (7, 0), rows),
    "sampler": partial(sampled, shuffle=False),
    "sampler, shuffled": partial(sampled, shuffle=True),
    "accelerate": prepared,
    "accelerate, shuffled": partial(prepared, shuffle=True),
    "accelerate, seedable": partial(prepared, shuffle=True, use_seedable_sampler=True),
    "accelerate, batches split": partial(prepared, split_batches=True),
    "accelerate, not even": partial(prepared, even_batches=False),
}
"""Ways to divide 13 rows; with one process each stands for `whole`."""

ESTIMATORS = {
    "kfac": KFAC(directions=Contrasts()),
    "reduce": KFAC(reduce=True, directions=Contrasts()),
    "dense": DenseGGN(),
    "diagonal": DiagonalGGN(directions=Contrasts()),
    "low rank": KroneckerGGN(directions=Contrasts(), rank=4, wide=16),
}

RULES = {
    "fixed": FixedPrecision(2.0),
    "evidence": MarginalLikelihood(),
    "matched": MatchedPrecision(),
    "left out": LeaveOneOut(),
    "some left out": LeaveOneOut(max_rows=6),
}


def numbers(bayes: BayesianPeft) -> dict[str, Tensor]:
    """Everything that the processes must agree on."""
    posterior = bayes.posterior
    found = {
        f"{name}/{part}": tensor
        for name, operator in posterior.curvature.items()
        for part, tensor in operator.tensors().items()
    }
    found["log likelihood"] = torch.tensor(posterior.log_likelihood, dtype=torch.float64)
    found["rows"] = torch.tensor(posterior.n_rows)
    found["precision"] = torch.tensor([*posterior.prior.precision.values()], dtype=torch.float64)
    found["evidence"] = torch.tensor(bayes.log_marginal_likelihood(), dtype=torch.float64)
    return found


def fit(loader: Any, model: nn.Module | None = None, **settings: Any) -> BayesianPeft:
    """A quiet fit of the tiny hybrid."""
    settings = {"curvature": EXACT, "prior": FixedPrecision(2.0), **settings}
    return bayesianize(hybrid() if model is None else model, loader, progress=False, **settings)


def divided(rank: int) -> dict[str, Any]:
    rows = rows_of(hybrid())
    return {name: numbers(fit(make(rank, rows))) for name, make in DIVIDED.items()}


def vectors() -> list[Any]:
    """Rows for a small network."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(ROWS, 20, generator=generator).double()
    return [(row, torch.tensor(place % 3)) for place, row in enumerate(drawn)]


def estimators(rank: int) -> dict[str, Any]:
    shard, model = parts(rank, (5, 2), vectors()), mlp(20, 18, 3)
    return {name: numbers(fit(shard, model, curvature=one)) for name, one in ESTIMATORS.items()}


def rules(rank: int) -> dict[str, Any]:
    rows = rows_of(hybrid())
    found = {}
    for name, rule in RULES.items():
        bayes = fit(prepared(rank, rows), prior=rule)
        found[name] = {**numbers(bayes), "predictive": repr(bayes.predictive)}
    held_out = HeldOut(sampled(rank, rows_of(hybrid(), 7), shuffle=False))
    found["held out"] = numbers(fit(parts(rank, (7, 0), rows), prior=held_out))
    found["single precision"] = numbers(fit(prepared(rank, rows), hybrid().float()))
    return found


def numbers_to_predict() -> list[Any]:
    """Rows of a regression."""
    drawn = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0)).double()
    return [(row[:3], row[3:]) for row in drawn]


def regression(loader: Any) -> dict[str, Tensor]:
    bayes = fit(loader, mlp(3, 4, 2), likelihood=Gaussian(), prior=LeaveOneOut())
    noise = torch.tensor(bayes.likelihood.noise_variance, dtype=torch.float64)
    return {**numbers(bayes), "noise": noise}


SEVERAL = {"every answer": LeaveOneOut(), "some answers": LeaveOneOut(max_answers=2 * ROWS)}
"""Of rows with five labels each, all and two."""


def several(loader: Any, rule: LeaveOneOut) -> dict[str, Tensor]:
    """Several labels a row."""
    return numbers(fit(loader, mlp(20, 18, 5), likelihood=Bernoulli(), prior=rule))


def several_labels() -> list[Any]:
    """Rows with five of them."""
    drawn = torch.randn(ROWS, 25, generator=torch.Generator().manual_seed(0)).double()
    return [(row[:20], (row[20:] > 0).double()) for row in drawn]


def several_divided(rank: int) -> dict[str, Any]:
    shard = parts(rank, (0, 7), several_labels())
    return {name: several(shard, rule) for name, rule in SEVERAL.items()}


def predictions(rank: int) -> dict[str, Any]:
    rows = rows_of(hybrid())
    bayes = fit(whole(rows))
    found = {}
    for name, make in DIVIDED.items():
        found[name] = {
            column: tensor
            for column, tensor in bayes.predict_loader(make(rank, rows), progress=False)
            .columns()
            .items()
            if tensor is not None
        }
    return found


def some_rows(rank: int) -> dict[str, Any]:
    rows = rows_of(hybrid(), 24)
    bayes = fit(prepared(rank, rows), curvature=Subsample(8, EXACT), prior=LeaveOneOut())
    return {"eight of 24": numbers(bayes)}


def signs(rank: int) -> dict[str, Any]:
    """Both processes with the very same rows."""
    rows = rows_of(hybrid(), 4)
    random = KroneckerGGN(directions=RandomSigns())
    return {
        "together": numbers(fit(Shard(list(whole(rows))), curvature=random)),
        "alone": numbers(fit(whole(rows), curvature=random)),
    }


def saving(rank: int, folder: Path) -> dict[str, Any]:
    model = tuned()
    rows = rows_of(model)
    bayes = fit(prepared(rank, rows), model, resume=Resume(folder / "partial", seconds=0))
    place = folder / f"saved by {rank}"
    bayes.save_pretrained(place)
    alone = fit(whole(rows), model)
    alone.save_pretrained(folder / f"alone {rank}")
    # Both at once, each with the whole: into one folder, but never into one file.
    keep = Resume(folder / "both alone", seconds=0)
    kept = [outcome(lambda: fit(whole(vectors(), 1), mlp(20, 18, 3), resume=keep)) for _ in "12345"]
    return {
        "wrote": place.exists(),
        "wrote alone": (folder / f"alone {rank}").exists(),
        "kept alone": sorted({*kept}),
    }


def page(rank: int, folder: Path) -> dict[str, Any]:
    """The Python of docs/devices.md, in one piece."""
    model = hybrid()
    base = folder / "base"
    if rank == 0:  # transformers writes in the first process only
        tiny_model("bert").save_pretrained(base)
    dist.barrier()
    scope: dict[str, Any] = {
        "model": model,
        "train_loader": whole(rows_of(model)),
        "held_out_loader": whole(rows_of(model, 60)),
        "folder": folder / "page",
        "name": str(base),
    }
    fence = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for block in fence.findall(PAGE.read_text("utf-8")):
        exec(compile(block, str(PAGE), "exec"), scope)
    return {
        "rows predicted": len(scope["prediction"]),
        "saved": (folder / "page" / "posterior.json").is_file(),
        "audited": "found" in scope,
        "devices": sorted({str(p.device) for p in scope["base"].parameters()}),
    }


class Failing(list[Any]):
    """Batches of which one cannot be read in the pass of a given number."""

    def __init__(self, batches: list[Any], at_pass: int) -> None:
        super().__init__(batches)
        self.passes, self.at_pass = 0, at_pass

    def __iter__(self) -> Any:
        self.passes += 1
        for batch in super().__iter__():
            if self.passes == self.at_pass:
                raise OSError("the disk is gone")
            yield batch


def errors(rank: int, folder: Path) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    rows = rows_of(hybrid())
    wrong = [{**row, "labels": torch.tensor(9 if rank == 1 else 0)} for row in rows]
    broken = [list(whole(rows)) for _ in range(3)]
    if rank == 1:
        broken = [Failing(batches, n + 1) for n, batches in enumerate(broken)]
    sharded = fully_shard(hybrid().float())
    calls: dict[str, Callable[[], Any]] = {
        "label": lambda: fit(Shard(list(whole(wrong)))),
        "first look": lambda: fit(Shard(broken[0])),
        "fit": lambda: fit(Shard(broken[1])),
        "prior": lambda: fit(Shard(broken[2]), prior=MatchedPrecision()),
        "other weights": lambda: fit(Shard(list(whole(rows))), hybrid(r=2 + rank)),
        "no rows": lambda: fit(Shard([])),
        "other seeds": lambda: fit(sampled(rank, rows, shuffle=True, seed=rank)),
        "dispatched": lambda: fit(prepared(rank, rows, dispatch_batches=True)),
        "ddp": lambda: fit(whole(rows), DistributedDataParallel(hybrid())),
        "fsdp": lambda: fit(whole(rows), sharded),
    }
    return {name: outcome(call) for name, call in calls.items()}


def outcome(call: Callable[[], Any]) -> str:
    """The error a call raises, in words."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(folder: Path) -> None:
    """Every case, in each process."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {
        "divided": divided(rank),
        "estimators": estimators(rank),
        "rules": rules(rank),
        "regression": regression(parts(rank, (5, 2), numbers_to_predict())),
        "several": several_divided(rank),
        "predictions": predictions(rank),
        "some rows": some_rows(rank),
        "signs": signs(rank),
        "saving": saving(rank, folder),
        "page": page(rank, folder),
        "errors": errors(rank, folder),
    }
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        raise
