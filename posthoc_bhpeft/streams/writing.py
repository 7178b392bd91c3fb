"""A round's folder: written whole or not at all, and a checkpoint like any other."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from math import isnan
from pathlib import Path

from posthoc_bhpeft.folders import STALE_SECONDS, whole_folder
from posthoc_bhpeft.saving import read_record
from posthoc_bhpeft.streams.identity import SCRATCH
from posthoc_bhpeft.streams.lineage import Lineage
from posthoc_bhpeft.streams.methods.carried import CarriedRun
from posthoc_bhpeft.training import TrainingRecord

_LONGEST_NAME = 60


def write_round(folder: Path, run: CarriedRun, base: str, lineage: Lineage) -> Lineage:
    """Write the folder of a round, which is there only when it is whole.

    Args:
        folder: of the stream.
        run: has learnt the round.
        base: of the stream, as it was named.
        lineage: of the round; its posterior is not known yet.

    Returns:
        The lineage as it was written.

    Raises:
        ConfigError: the folder is there, because another process learnt the round meanwhile.
    """
    _remove_stale(folder)
    with whole_folder(folder / lineage.folder) as fresh:
        if run.bayes is not None:
            run.bayes.write_files(fresh, f"{folder.name}/{lineage.folder}")
            run.learner.tokenizer.save_pretrained(str(fresh))
            _training_record(run, base, lineage).write(fresh)
            lineage = replace(lineage, posterior=str(read_record(fresh)["sha256"]))
        lineage.write(fresh)
    return lineage


def folder_name(index: int, name: str) -> str:
    """`round-003-NAME`, with what file systems and shells dislike replaced."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:_LONGEST_NAME]
    return f"round-{index:03d}-{plain}".rstrip("-")


def _training_record(run: CarriedRun, base: str, lineage: Lineage) -> TrainingRecord:
    """training.json, by which `bhpeft predict` knows the labels and the length of texts."""
    history = run.history
    judged = [epoch for epoch, row in enumerate(history, 1) if "nll" in row]
    nll = {epoch: history[epoch - 1]["nll"] for epoch in judged}
    # As in training: a NaN is best only where there is nothing else.
    best = min(judged, key=lambda epoch: (isnan(nll[epoch]), nll[epoch]), default=len(history))
    return TrainingRecord(
        model=base,
        settings=replace(run.learner.settings, seed=lineage.seed),
        label_names=lineage.labels.titles,
        rows=None,
        train_rows=lineage.train.n,
        train_digest=lineage.train.digest,
        validation_rows=lineage.validation.n if lineage.validation else 0,
        best_epoch=best,
        history=history,
        seconds=lineage.seconds,
    )


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left half written; younger ones may still be written to."""
    for scratch in (*folder.glob(".round-*"), *folder.glob(SCRATCH)):
        if time.time() - scratch.stat().st_mtime <= STALE_SECONDS:
            continue
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)
