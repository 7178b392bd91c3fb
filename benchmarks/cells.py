"""What benchmarks of many trainings share: keys of what they keep, and quiet while they run."""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from pathlib import Path

import datasets
import torch
import transformers
from pages import RESULTS


def keyed(label: str, identity: object, digits: int = 12) -> str:
    """A label with a hash of all that decides a result: something else there, another key.

    Args:
        label: for people.
        identity: what JSON can write.
        digits: of the hash.
    """
    text = json.dumps(identity, sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:digits]}"


def parser(about: str) -> argparse.ArgumentParser:
    """What every benchmark of cells asks: where the data are, and where results go.

    Args:
        about: what the command's help begins with.
    """
    found = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    found.add_argument("--results", type=Path, default=RESULTS)
    found.add_argument("--report", action="store_true", help="run nothing, write the page")
    return found


def quiet() -> None:
    """One thread, and no bars: cells say when they are done."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
