"""Posteriors on disk: `posterior.safetensors` for the numbers, `posterior.json` for the rest.

The JSON holds the SHA-256 of the tensors, so a pair that does not belong together is noticed.
`folders.replacing_files` makes both, and the adapter beside them, appear together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.checkpoints import read_json, write_json
from posthoc_bhpeft.errors import BhpeftError, CheckpointError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
    OperatorSum,
)
from posthoc_bhpeft.matching import check_blocks, check_frozen, check_weights, frozen_samples
from posthoc_bhpeft.posterior import Posterior, decompose, read_weights
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.settings import decode, encode

POSTERIOR_FILE = "posterior.json"
TENSOR_FILE = "posterior.safetensors"
FORMAT_VERSION = 2
RECORD_PARTS = frozenset(
    [
        "sha256",
        "likelihood",
        "predictive",
        "curvature",
        "prior_reason",
        "log_likelihood",
        "n_rows",
        "n_outputs",
    ]
)
BLOCK_PARTS = frozenset({"shape", "parameter", "structure", "prior_precision"})
STRUCTURES = (KroneckerOperator, DiagonalOperator, DenseOperator)


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


def save_posterior(
    folder: Path, model: nn.Module, saved: SavedPosterior, about_model: Mapping[str, Any]
) -> None:
    """Write the two files of a posterior into an existing folder.

    Args:
        folder: Where to.
        model: The model it belongs to; a few of its frozen numbers are kept to recognise it.
        saved: What to write.
        about_model: Kept in the JSON for whoever rebuilds the model.

    Raises:
        CheckpointError: If the curvature has a structure of the user's own, or the disk is full.
    """
    posterior = saved.posterior
    for block in posterior.blocks:
        carried = posterior.prior.carried.get(block.name)
        for operator in (posterior.curvature[block.name], *([] if carried is None else [carried])):
            check_structure(block, operator)
    tensors = posterior_tensors(saved.posterior)
    tensors |= {f"frozen/{name}": sample for name, sample in frozen_samples(model).items()}
    try:
        save_file(tensors, folder / TENSOR_FILE, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(
            f"Could not write {TENSOR_FILE}: {error}. Is the disk full?"
        ) from error
    digest = file_digest(folder / TENSOR_FILE)
    write_json(folder / POSTERIOR_FILE, {**describe(saved, digest), "model": dict(about_model)})


def load_posterior(
    folder: Path,
    record: Mapping[str, Any],
    model: nn.Module,
    blocks: tuple[Block, ...],
    *,
    predictive: Any = None,
) -> SavedPosterior:
    """Read a posterior and match it to a model.

    Args:
        folder: Holds what `save_posterior` wrote.
        record: From `read_record`.
        model: The model it belongs to, with the adapter's weights.
        blocks: Of the model, from `discover`.
        predictive: Takes the place of the one saved.

    Returns:
        The posterior, its tensors on the devices of the model's weights.

    Raises:
        CheckpointError: If files are missing, cut off or edited, or if the model has other blocks
            or other weights.
    """
    tensors = read_tensors(folder, record)
    try:
        check_blocks(blocks, record["blocks"])
        check_frozen(model, with_prefix(tensors, "frozen/"))
        check_weights(model, blocks, with_prefix(tensors, "mean/"))
        return SavedPosterior(
            read_posterior(blocks, record, tensors, read_weights(model, blocks)),
            decode(record["likelihood"]),
            decode(record["predictive"]) if predictive is None else predictive,
            # Kept for the record only, so an estimator of the user's own does no harm.
            decode(record["curvature"], strict=False),
            str(record["prior_reason"]),
        )
    except BhpeftError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / POSTERIOR_FILE} does not make sense: {type(error).__name__} {error}. It "
            "was edited, or written by another version. Fit and save the posterior again."
        ) from error


def describe(saved: SavedPosterior, digest: str) -> dict[str, Any]:
    """The JSON beside the tensors: readable without this package."""
    posterior = saved.posterior
    return {
        "format_version": FORMAT_VERSION,
        "sha256": digest,
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
                "parameter": block.parameter,
                "structure": structure_of(posterior.curvature[block.name]),
                "prior_precision": posterior.prior.precision[block.name],
                **carried_parts(posterior.prior, block),
            }
            for block in posterior.blocks
        },
    }


def carried_parts(prior: GaussianPrior, block: Block) -> dict[str, Any]:
    """What a prior carries in a block, for the JSON; nothing where it carries nothing."""
    parts: dict[str, Any] = {}
    if block.name in prior.carried:
        parts["carried"] = structure_of(prior.carried[block.name])
    if block.name in prior.merge_errors:
        parts["merge_error"] = prior.merge_errors[block.name]
    return parts


def structure_of(operator: BlockOperator) -> str:
    """Class names of an operator's terms, joined by `+`."""
    terms = operator.terms if isinstance(operator, OperatorSum) else (operator,)
    return "+".join(type(term).__name__ for term in terms)


def posterior_tensors(posterior: Posterior) -> dict[str, Tensor]:
    """Every tensor of a posterior by a path-like name, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for block in posterior.blocks:
        tensors[f"mean/{block.name}"] = posterior.mean[block.name]
        prior_mean = posterior.prior.mean_of(block)
        if prior_mean is not None:
            tensors[f"prior_mean/{block.name}"] = prior_mean
        places = {"curvature": posterior.curvature, "carried": posterior.prior.carried}
        for place, operators in places.items():
            if block.name in operators:
                for part, tensor in operators[block.name].tensors().items():
                    tensors[f"{place}/{block.name}/{part}"] = tensor
    # Copied: a prior may share tensors with a posterior, and a file cannot.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON of a saved posterior, its format checked.

    Raises:
        CheckpointError: If there is none, or of another format.
    """
    path = folder / POSTERIOR_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds no posterior ({POSTERIOR_FILE} is missing). Make one with "
            "bayesianize(model, loader).save_pretrained(folder), or `bhpeft fit`."
        )
    record = read_json(path)
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; this version of posthoc-bhpeft reads "
            f"{FORMAT_VERSION}. Update the package, or fit and save again."
        )
    check_record(path, record)
    return record


def check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Raise unless a record has all its parts; what they hold is checked where they are read."""
    blocks = record.get("blocks")
    missing = RECORD_PARTS - record.keys()
    if isinstance(blocks, dict) and all(isinstance(entry, dict) for entry in blocks.values()):
        missing |= {part for entry in blocks.values() for part in BLOCK_PARTS - entry.keys()}
    else:
        missing |= {"blocks"}
    if not isinstance(record.get("model"), dict):
        missing |= {"model"}
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(sorted(missing))}: it was edited, or cut off. Copy it again, "
            "or fit and save again."
        )


def read_tensors(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors beside a record, their hash checked.

    Raises:
        CheckpointError: If the file is missing, or not the one that was saved.
    """
    path = folder / TENSOR_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, though {POSTERIOR_FILE} is there: the folder was copied in part. "
            "Copy it again, whole."
        )
    digest, recorded = file_digest(path), str(record.get("sha256"))
    if digest != recorded:
        raise CheckpointError(
            f"{path} is damaged or cut off: its {path.stat().st_size} bytes have the SHA-256 "
            f"{digest[:12]}..., recorded was {recorded[:12]}... Copy it again, or fit and save "
            "again."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}.") from error


def read_posterior(
    blocks: tuple[Block, ...],
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> Posterior:
    """The posterior inside a record and its tensors, on the devices of the weights."""
    entries = record["blocks"]
    prior_means = with_prefix(tensors, "prior_mean/")
    held = [
        b
        for b in blocks
        if "carried" in entries[b.name] or with_prefix(tensors, f"carried/{b.name}/")
    ]
    prior = GaussianPrior(
        {b.name: float(entries[b.name]["prior_precision"]) for b in blocks},
        {name: mean.to(weights[name]) for name, mean in prior_means.items()},
        {b.name: read_operator(b, entries, tensors, weights, "carried") for b in held},
        blocks,
        {
            b.name: float(entries[b.name]["merge_error"])
            for b in blocks
            if "merge_error" in entries[b.name]
        },
    )
    curvature = {b.name: read_operator(b, entries, tensors, weights, "curvature") for b in blocks}
    return Posterior(
        blocks,
        {b.name: tensors[f"mean/{b.name}"].to(weights[b.name]) for b in blocks},
        prior,
        curvature,
        {b.name: decompose(prior, b.name, curvature[b.name]) for b in blocks},
        float(record["log_likelihood"]),
        int(record["n_rows"]),
        int(record["n_outputs"]),
    )


def read_operator(
    block: Block,
    entries: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    place: str,
) -> BlockOperator:
    """One block's operator, like its weights: `place` is "curvature" or "carried"."""
    name = "structure" if place == "curvature" else place
    structures = str(entries[block.name][name]).split("+")
    # Copied: inside a file tensors are not aligned, and kernels then add up in another order.
    own = {
        part: tensor.to(weights[block.name], copy=True)
        for part, tensor in with_prefix(tensors, f"{place}/{block.name}/").items()
    }
    terms = {part.split(".")[0] for part in own if "." in part}
    if len(structures) == 1 and not terms:
        return read_term(block, structures[0], own)
    if terms != {str(index) for index in range(len(structures))}:
        raise CheckpointError(
            f"Block {block.name!r} has {len(structures)} {name} terms in {POSTERIOR_FILE} and "
            f"{len(terms)} in {TENSOR_FILE}: one of them was edited. Copy both again, or fit and "
            "save again."
        )
    return OperatorSum(
        tuple(
            read_term(block, structure, with_prefix(own, f"{index}."))
            for index, structure in enumerate(structures)
        )
    )


def read_term(block: Block, structure: str, part: Mapping[str, Tensor]) -> BlockOperator:
    """One operator of a known class from its tensors."""
    if structure == KroneckerOperator.__name__:
        return KroneckerOperator(part["left"], part["right"])
    if structure == DiagonalOperator.__name__:
        return DiagonalOperator(part["diagonal"])
    if structure == DenseOperator.__name__:
        return DenseOperator(part["matrix"], block.shape[0])
    raise CheckpointError(
        f"Block {block.name!r} has the structure {structure!r}, unknown to this version of "
        "posthoc-bhpeft. Update the package."
    )


def check_structure(block: Block, operator: BlockOperator) -> None:
    """Raise if an operator is of a class that `read_term` could not read back."""
    terms = operator.terms if isinstance(operator, OperatorSum) else (operator,)
    for term in terms:
        if not isinstance(term, STRUCTURES):
            known = ", ".join(structure.__name__ for structure in STRUCTURES)
            raise CheckpointError(
                f"The curvature of block {block.name!r} is a {type(term).__name__}, which has no "
                f"file format. Supported: {known}, and sums of them."
            )


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name starts so, by the rest of their name."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
