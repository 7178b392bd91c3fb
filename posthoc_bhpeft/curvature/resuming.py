"""`Resume`: what a fit has summed so far, on disk, so that a killed one goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from posthoc_bhpeft.curvature.partial import PartialFit
from posthoc_bhpeft.digests import digest_of
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.errors import CheckpointError, ConfigError, DataError
from posthoc_bhpeft.shards import samplers

GENERATOR = "generator"
OUTPUTS = "outputs"
PROBED = 256
"""Outputs of the first batch that are kept."""
TOLERANCE = 0.05
"""More than half precision on another device makes of an output, less than another model does."""
_BY_CHANCE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@dataclass(frozen=True)
class Probe:
    """What the model makes of the first batch: some outputs, by which a function is known again.

    Weights and settings do not tell all of a model: another activation, mask or task has neither.
    The outputs are compared with a tolerance, for a fit may go on on another machine.

    Attributes:
        inputs: Digest of the batch; empty where a process has none.
        outputs: At most `PROBED` numbers, evenly spaced, in double precision on the CPU.
    """

    inputs: str = ""
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    @classmethod
    def of(cls, inputs: Any, outputs: Tensor) -> Probe:
        """Of a batch's inputs, and of all that the model says to them."""
        flat = outputs.detach().flatten()
        step = max(len(flat) // PROBED, 1)
        return cls(digest_of(inputs), flat[::step][:PROBED].double().cpu().clone())

    def agrees(self, outputs: Tensor) -> bool:
        """Whether other outputs to the same inputs are these, up to rounding."""
        if outputs.shape != self.outputs.shape:
            return False
        if not len(outputs):
            return True
        # The median, since logits of choices that are not there are huge.
        size = self.outputs.abs() + self.outputs.abs().median()
        return bool(((outputs - self.outputs).abs() <= TOLERANCE * size).all())


@dataclass(frozen=True)
class Resume:
    """Keep the partial sums of a fit in a folder, and start from those that are there.

    A fit that was killed goes on after its last whole batch with the very same numbers. The
    batches that were done are read again, not computed, to see that the data are the same. The
    files are removed once the posterior is there. Each process keeps its own.

    Args:
        folder: Of this one fit; made where it does not exist.
        seconds: Write so often, and at the end of the pass.
    """

    folder: str | Path
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ConfigError(f"Resume(seconds={self.seconds!r}): it must be 0 or more.")

    def open(
        self, fingerprint: Mapping[str, str], processes: Processes, probe: Probe = Probe()
    ) -> Keeper:
        """The file of one process.

        Args:
            fingerprint: What must be the same as in the fit that was killed, by a name for people.
            processes: All that fit.
            probe: What the model makes of the first batch, which must be the same too.

        Raises:
            CheckpointError: If the fit was begun by another number of processes.
        """
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("partial-*-of-*.safetensors"):
            if not path.stem.endswith(f"-of-{processes.size}"):
                raise CheckpointError(
                    f"{path} is of a fit by {path.stem.rpartition('-')[2]} processes; these are "
                    f"{processes.size}. Start as many again, or remove {str(folder)!r} to start "
                    "from the first row."
                )
        alone = processes.size < Processes.running().size
        return Keeper(folder / file_name(processes), fingerprint, self.seconds, probe, alone)

    def batches_done(self) -> int:
        """How many batches a fit by one process had summed when it was killed; 0 without any.

        Raises:
            CheckpointError: If the file is damaged.
        """
        path = Path(self.folder) / file_name(Processes())
        if not path.is_file():
            return 0
        with reading(path) as file:
            return int(json.loads(file.metadata()["fit"])["n_batches"])


@dataclass
class Keeper:
    """The partial fit of one process on disk.

    Attributes:
        path: One file, always whole.
        fingerprint: See `Resume.open`.
        seconds: Between two writings.
        probe: See `Resume.open`.
        alone: Whether other processes may fit by themselves beside this one.
        clock: For tests.
    """

    path: Path
    fingerprint: Mapping[str, str]
    seconds: float
    probe: Probe = field(default_factory=Probe)
    alone: bool = False
    clock: Callable[[], float] = time.monotonic

    def remaining(
        self, batches: Iterable[Any], fit: PartialFit, generator: torch.Generator
    ) -> Iterator[Any]:
        """The batches still to do, with `fit` and `generator` brought to where they were.

        Args:
            batches: All of them, in the order of the fit that was killed.
            fit: Must have taken in a batch before the next one is asked for.
            generator: Of random signs.

        Raises:
            CheckpointError: If the file is damaged, or of another fit.
            DataError: If the batches that were done are others now.
        """
        done, known = self.restore(fit, generator)
        digest, place, written = "", 0, self.clock()
        for place, batch in enumerate(batches, start=1):
            digest = digest_of(batch, digest)
            if place == done and digest != known:
                raise DataError(self.explain_other_data())
            if place <= done:
                continue
            yield batch
            if self.clock() - written >= self.seconds:
                self.write(fit, generator, place, digest)
                written = self.clock()
        if place < done:
            raise DataError(self.explain_other_data())
        self.write(fit, generator, place, digest)

    def restore(self, fit: PartialFit, generator: torch.Generator) -> tuple[int, str]:
        """Read the file, if there is one: how many batches were done, and their digest."""
        if not self.path.is_file():
            return 0, ""
        with reading(self.path) as file:
            record = json.loads(file.metadata()["fit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.check_same(record["fingerprint"])
            self.check_probe(record["first_batch"], tensors.pop(OUTPUTS))
        generator.set_state(tensors.pop(GENERATOR))
        fit.restore({parted(name): tensor for name, tensor in tensors.items()})
        fit.log_likelihood = float.fromhex(record["log_likelihood"])
        fit.n_rows, fit.n_outputs = record["n_rows"], record["n_outputs"]
        return record["n_batches"], record["digest"]

    def check_same(self, fingerprint: Mapping[str, str]) -> None:
        """Raise if the file is of a fit with other weights or settings.

        Raises:
            CheckpointError: Naming what differs.
        """
        names = dict.fromkeys([*fingerprint, *self.fingerprint])
        other = [n for n in names if fingerprint.get(n) != self.fingerprint.get(n)]
        if other:
            raise CheckpointError(
                f"{self.path} is of a fit with other {' and '.join(other)}. Go on with those, or "
                f"remove {str(self.path.parent)!r} to start from the first row."
            )

    def check_probe(self, inputs: str, outputs: Tensor) -> None:
        """Raise if the model says something else to the first batch than it did.

        Raises:
            CheckpointError: If so, though its weights and settings are the same.
            DataError: If the batch is another.
        """
        if inputs != self.probe.inputs:
            raise DataError(self.explain_other_data())
        if not self.probe.agrees(outputs):
            raise CheckpointError(
                f"{self.path} is of a fit of another model: its weights are the same, but what it "
                "says to the first batch is not. Its config, its task, its code or the version of "
                f"a package has changed. Go on with those, or remove {str(self.path.parent)!r} to "
                "start from the first row."
            )

    def write(
        self, fit: PartialFit, generator: torch.Generator, n_batches: int, digest: str
    ) -> None:
        """Replace the file; whoever is killed on the way leaves the old one."""
        tensors = {joined(key): value for key, value in fit.tensors("resume=").items()}
        record = {
            "fingerprint": dict(self.fingerprint),
            # All digits: a decimal number would do too, this cannot be misread.
            "log_likelihood": float(fit.log_likelihood).hex(),
            "n_rows": fit.n_rows,
            "n_outputs": fit.n_outputs,
            "n_batches": n_batches,
            "digest": digest,
            "first_batch": self.probe.inputs,
        }
        scratch = self.path.with_suffix(".part")
        save_file(
            {
                **to_disk(tensors),
                GENERATOR: generator.get_state(),
                OUTPUTS: self.probe.outputs,
            },
            scratch,
            metadata={"fit": json.dumps(record)},
        )
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(self.path)

    def remove(self) -> None:
        """Remove the file, and the folder if nothing else is in it.

        Where other processes fit by themselves the folder stays, for they may be about to write.
        """
        self.path.unlink(missing_ok=True)
        if not self.alone:
            with suppress(OSError):
                self.path.parent.rmdir()

    def explain_other_data(self) -> str:
        """The message where the loader gives other batches than it did."""
        return (
            f"The loader gives other batches than those that {self.path} has summed: other data, "
            "another batch_size, or another order. Use the loader of that fit, with "
            f"shuffle=False; or remove {str(self.path.parent)!r} to start from the first row."
        )


def file_name(processes: Processes) -> str:
    """Of the partial fit of one process, which no other process writes to.

    Those that fit by themselves, each the whole data, are all the first of one.
    """
    running = Processes.running()
    if processes.size < running.size and not running.first:
        return f"partial-alone-{running.rank}.safetensors"
    return f"partial-{processes.rank}-of-{processes.size}.safetensors"


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """A partial fit's file, open.

    Raises:
        CheckpointError: If it is damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no partial fit ({type(error).__name__}: {error}). Remove it to start from "
            "the first row."
        ) from error


def check_repeatable(loader: Any) -> None:
    """Raise if a loader draws its rows at random without a seed, so that none could go on.

    Raises:
        ConfigError: With what to do.
    """
    for sampler in samplers(loader):
        if isinstance(sampler, _BY_CHANCE) and sampler.generator is None:
            raise ConfigError(
                "resume= needs the same batches in the same order after a restart, and this loader "
                "shuffles without a seed. Make it with shuffle=False; the order of rows does not "
                "matter to a posterior."
            )


def to_disk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own, as a file needs them."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def joined(key: tuple[str, str]) -> str:
    """A block's name and a sum's as one: names of sums have no slash."""
    return f"{key[0]}/{key[1]}"


def parted(name: str) -> tuple[str, str]:
    """The inverse of `joined`."""
    block, _, part = name.rpartition("/")
    return block, part
