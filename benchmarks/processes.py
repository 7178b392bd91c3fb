"""How much faster is a fit by two processes? Each takes half of the batches, over gloo.

    python benchmarks/processes.py --output benchmarks/results/processes.md

Wall-clock time between two barriers, one thread a process, on a machine with as many idle cores as
processes; one and two processes take turns. Their factors are compared with those of one process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from cost import batch_of, minilm
from pages import origin, publish
from torch import distributed

from posthoc_bhpeft import Categorical, KroneckerGGN, Shard, discover
from posthoc_bhpeft.curvature import Contrasts, fit_curvature


def work(rank: int, world: int, port: int, n_batches: int, folder: str) -> None:
    """One process: its seconds and its factors, into a file."""
    torch.set_num_threads(1)
    # A head is made anew: the same in every process.
    torch.manual_seed(0)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    model = minilm(3)
    blocks = discover(model)
    batches = [batch_of(model, seed=index) for index in range(rank, n_batches, world)]
    estimator = KroneckerGGN(Contrasts())
    # The first fit warms up; the second is the one that counts.
    for _ in range(2):
        distributed.barrier()
        start = time.perf_counter()
        fitted = fit_curvature(model, blocks, Shard(batches), Categorical(), estimator)
        distributed.barrier()
        seconds = time.perf_counter() - start
    factors = {name: one.tensors() for name, one in fitted.operators.items()}
    torch.save({"seconds": seconds, "factors": factors}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def run(world: int, n_batches: int) -> dict[str, Any]:
    """What the first of `world` processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (world, port, n_batches, folder), nprocs=world)
        found: dict[str, Any] = torch.load(f"{folder}/0.pt", weights_only=True)
    return found


Factors = dict[str, dict[str, torch.Tensor]]


def difference(one: Factors, other: Factors) -> float:
    """Largest difference of two sets of factors, relative to the largest number of a factor."""
    return max(
        float((tensor - other[name][key]).abs().max() / tensor.abs().max())
        for name, factors in one.items()
        for key, tensor in factors.items()
    )


def report(ratios: Sequence[float], alone: Sequence[float], error: float, n_batches: int) -> str:
    """What was found, in words."""
    return "\n".join(
        [
            "# Two processes",
            "",
            f"{origin('torch')}; CPU, {os.cpu_count()} cores, one thread a process, gloo",
            "",
            f"The exact fit of a hybrid MiniLM, 3 classes, {n_batches} batches of 16 rows of 64 "
            f"tokens. Two processes are {statistics.median(ratios):.2f} times as fast as one "
            f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} pairs; one takes "
            f"{statistics.median(alone):.1f} s). Their factors differ from those of one process by "
            f"at most {error:.1e} of a factor's largest number.",
            "",
        ]
    )


def main() -> None:
    """Parse the command line, run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    ratios, alone, error = [], [], 0.0
    for _ in range(options.pairs):
        one, two = (run(world, options.batches) for world in (1, 2))
        alone.append(one["seconds"])
        ratios.append(one["seconds"] / two["seconds"])
        error = max(error, difference(one["factors"], two["factors"]))
    publish(report(ratios, alone, error, options.batches), options.output)


if __name__ == "__main__":
    main()
