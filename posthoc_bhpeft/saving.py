"""Posteriors on disk: one safetensors file, one JSON file that names it, a section of the card.

The tensors go into a file named by its content's hash; the JSON, replaced last and in one step,
names that file. Whenever the process dies, the folder holds a whole posterior: the old or the new.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block, discover
from posthoc_bhpeft.checkpoints import read_json, write_json, write_text
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import BlockOperator, DenseOperator, DiagonalOperator, KroneckerOperator
from posthoc_bhpeft.posterior import Posterior, read_weights
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.settings import decode, encode

POSTERIOR_FILE = "posterior.json"
FORMAT_VERSION = 1
CARD_START, CARD_END = "<!-- posthoc_bhpeft -->", "<!-- /posthoc_bhpeft -->"


@dataclass(frozen=True)
class SavedPosterior:
    """What a folder holds beside the adapter.

    Attributes:
        posterior: The Gaussian over the blocks.
        likelihood: Of the labels given outputs.
        predictive: The predictive it was made for.
        curvature: The estimator that made it, for the record.
        reason: Why the prior is what it is.
    """

    posterior: Posterior
    likelihood: Likelihood
    predictive: Any
    curvature: Any
    reason: str


def save_posterior(folder: Path, saved: SavedPosterior) -> None:
    """Write a posterior into a folder, beside whatever is there.

    Args:
        folder: Made where it does not exist.
        saved: What to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, digest = write_tensors(folder, posterior_tensors(saved.posterior))
    write_json(folder / POSTERIOR_FILE, describe(saved, name, digest))
    for old in folder.glob("posterior-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_posterior(folder: Path, model: nn.Module) -> SavedPosterior:
    """Read a posterior and match it to the blocks of a model.

    Args:
        folder: Holds what `save_posterior` wrote.
        model: The model it belongs to, with the adapter's weights.

    Returns:
        The posterior, its tensors on the devices of the model's weights.

    Raises:
        CheckpointError: If files are missing, cut off or of a newer format, or if the model has
            other blocks or other weights.
    """
    record = read_record(folder)
    tensors = read_tensors(folder, record)
    blocks = discover(model)
    check_blocks(blocks, record)
    weights = read_weights(model, blocks)
    try:
        mean = {b.name: tensors[f"mean/{b.name}"].to(weights[b.name]) for b in blocks}
        check_weights(weights, mean)
        curvature = {
            b.name: read_operator(b, record["blocks"][b.name], tensors, weights[b.name])
            for b in blocks
        }
        prior = GaussianPrior(
            {b.name: float(record["blocks"][b.name]["prior_precision"]) for b in blocks},
            {
                b.name: tensors[f"prior_mean/{b.name}"].to(weights[b.name])
                for b in blocks
                if f"prior_mean/{b.name}" in tensors
            },
        )
        posterior = Posterior(
            blocks,
            mean,
            prior,
            curvature,
            {name: operator.decompose() for name, operator in curvature.items()},
            float(record["log_likelihood"]),
            int(record["n_rows"]),
            int(record["n_outputs"]),
        )
        return SavedPosterior(
            posterior,
            decode(record["likelihood"]),
            decode(record["predictive"]),
            decode(record["curvature"]),
            str(record["prior_reason"]),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{folder / POSTERIOR_FILE} lacks {error}. Fit and save the posterior again."
        ) from error


def describe(saved: SavedPosterior, tensor_file: str, digest: str) -> dict[str, Any]:
    """The JSON beside the tensors: readable without this package."""
    posterior = saved.posterior
    return {
        "format_version": FORMAT_VERSION,
        "tensors": {"file": tensor_file, "sha256": digest},
        "likelihood": encode(saved.likelihood),
        "predictive": encode(saved.predictive),
        "curvature": encode(saved.curvature),
        "prior_reason": saved.reason,
        "log_likelihood": posterior.log_likelihood,
        "log_marginal_likelihood": posterior.log_marginal_likelihood(),
        "n_rows": posterior.n_rows,
        "n_outputs": posterior.n_outputs,
        "blocks": {
            block.name: {
                "kind": block.kind.value,
                "shape": list(block.shape),
                "structure": type(posterior.curvature[block.name]).__name__,
                "prior_precision": posterior.prior.precision[block.name],
            }
            for block in posterior.blocks
        },
    }


def posterior_tensors(posterior: Posterior) -> dict[str, Tensor]:
    """Every tensor of a posterior by a path-like name, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for block in posterior.blocks:
        tensors[f"mean/{block.name}"] = posterior.mean[block.name]
        prior_mean = posterior.prior.mean_of(block)
        if prior_mean is not None:
            tensors[f"prior_mean/{block.name}"] = prior_mean
        for part, tensor in posterior.curvature[block.name].tensors().items():
            tensors[f"curvature/{block.name}/{part}"] = tensor
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write a safetensors file named by its hash; returns name and SHA-256."""
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".posterior.")
    os.close(handle)
    try:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        digest = file_digest(Path(temporary))
        name = f"posterior-{digest[:12]}.safetensors"
        Path(temporary).chmod(0o644)
        Path(temporary).replace(folder / name)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return name, digest


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON of a saved posterior, its format checked."""
    if not (folder / POSTERIOR_FILE).is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds no posterior ({POSTERIOR_FILE} is missing). Make one with "
            "bayesianize(model, loader).save_pretrained(folder), or `bhpeft fit`."
        )
    record = read_json(folder / POSTERIOR_FILE)
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / POSTERIOR_FILE} has format version {version!r}; this version of "
            f"posthoc-bhpeft reads {FORMAT_VERSION}. Update the package, or fit and save again."
        )
    return record


def read_tensors(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that a record names, their hash checked."""
    named = record.get("tensors", {})
    path = folder / str(named.get("file"))
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the folder was copied in part. Copy it again, whole."
        )
    digest = file_digest(path)
    if digest != named.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged or cut off: {path.stat().st_size} bytes with SHA-256 "
            f"{digest[:12]}..., recorded was {str(named.get('sha256'))[:12]}... Copy it again, or "
            "fit and save again."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}.") from error


def read_operator(
    block: Block, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], like: Tensor
) -> BlockOperator:
    """One block's curvature."""

    def part(name: str) -> Tensor:
        return tensors[f"curvature/{block.name}/{name}"].to(like.device)

    structure = entry["structure"]
    if structure == KroneckerOperator.__name__:
        return KroneckerOperator(part("left"), part("right"))
    if structure == DiagonalOperator.__name__:
        return DiagonalOperator(part("diagonal"))
    if structure == DenseOperator.__name__:
        return DenseOperator(part("matrix"), block.shape[0])
    raise CheckpointError(
        f"Block {block.name!r} has the structure {structure!r}, unknown to this version of "
        "posthoc-bhpeft. Update the package."
    )


def check_blocks(blocks: Sequence[Block], record: Mapping[str, Any]) -> None:
    """Raise unless a record has just the blocks of the model."""
    saved = {name: tuple(entry["shape"]) for name, entry in record["blocks"].items()}
    found = {block.name: block.shape for block in blocks}
    if saved == found:
        return
    different = [
        f"{name}: saved {saved.get(name, 'none')}, model {found.get(name, 'none')}"
        for name in dict.fromkeys([*saved, *found])
        if saved.get(name) != found.get(name)
    ]
    raise CheckpointError(
        f"This posterior belongs to another model: {len(different)} of {len(saved)} blocks differ, "
        f"first: {different[0]}. Load it with the adapter it was saved beside."
    )


def check_weights(weights: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> None:
    """Raise unless the model stands at the posterior's mean, up to half-precision rounding."""
    for name, saved in mean.items():
        if not torch.allclose(
            weights[name], saved, rtol=1e-2, atol=1e-3 * float(saved.abs().max())
        ):
            gap = float((weights[name] - saved).abs().max())
            raise CheckpointError(
                f"The model's weights are not those of this posterior: block {name!r} differs by "
                f"up to {gap:.3g}. It was trained on since, or is another adapter of the same "
                "shape. Load the adapter saved beside the posterior, or fit again."
            )


def fetch_checkpoint(name: str | Path) -> Path:
    """A folder as it is, or the local copy of a repository on the hub.

    Raises:
        CheckpointError: If there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"There is no folder {str(name)!r}, and the hub gave no repository of that name: "
            f"{error}"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_card(folder: Path, section: str) -> None:
    """Put a section into the folder's README.md, or replace the one that is there."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    marked = f"{CARD_START}\n{section.strip()}\n{CARD_END}"
    pattern = re.compile(re.escape(CARD_START) + ".*?" + re.escape(CARD_END), re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: marked, text)
    else:
        text = f"{text.rstrip()}\n\n{marked}\n".lstrip()
    write_text(path, text)
