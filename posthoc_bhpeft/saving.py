"""Posteriors on disk: `posterior.safetensors` for the numbers, `posterior.json` for the rest.

The JSON holds the SHA-256 of the tensors, so a pair that does not belong together is noticed.
`folders.replacing_files` makes both, and the adapter beside them, appear together.
A rule for review, where the posterior has one, is a third file, `review.json`.
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

from posthoc_bhpeft.blocks import Block, Observed, Product, find_products
from posthoc_bhpeft.checkpoints import read_json, write_json
from posthoc_bhpeft.curvature import Placed
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import BlockOperator, check_structure, restored, structure_of
from posthoc_bhpeft.matching import check_blocks, check_frozen, check_weights, frozen_samples
from posthoc_bhpeft.posterior import Posterior, decompose_all, read_weights
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.rebuild import check_described
from posthoc_bhpeft.review import ReviewRule, read_rule, write_rule
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


@dataclass(frozen=True)
class SavedPosterior:
    """What a folder holds beside the adapter.

    Attributes:
        posterior: The Gaussian over the blocks.
        likelihood: Of the labels given outputs.
        predictive: The predictive it was made for.
        curvature: The estimator that made it, for the record.
        reason: Why the prior is what it is.
        review_rule: Which rows go to a human, if an audit decided that.
    """

    posterior: Posterior
    likelihood: Likelihood
    predictive: Any
    curvature: Any
    reason: str
    review_rule: ReviewRule | None = None


def save_posterior(
    folder: Path, model: nn.Module, saved: SavedPosterior, about_model: Mapping[str, Any]
) -> None:
    """Write the files of a posterior into an existing folder.

    Args:
        folder: Where to.
        model: The model it belongs to; a few of its frozen numbers are kept to recognise it.
        saved: What to write.
        about_model: Kept in the JSON for whoever rebuilds the model.

    Raises:
        CheckpointError: If the curvature has a structure of the user's own, or the disk is full.
    """
    posterior = saved.posterior
    for operators in (posterior.curvature, posterior.prior.held):
        for name, operator in operators.items():
            check_structure(name, operator)
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
    if saved.review_rule is not None:
        write_rule(folder, saved.review_rule, file_digest(folder / POSTERIOR_FILE))


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
            read_setting(record, "likelihood", "nll"),
            read_setting(record, "predictive", "predict") if predictive is None else predictive,
            # Kept for the record only, so an estimator of the user's own does no harm.
            decode(record["curvature"], strict=False),
            str(record["prior_reason"]),
            read_rule(folder, file_digest(folder / POSTERIOR_FILE)),
        )
    except CheckpointError:
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
                **carried_parts(posterior.prior, block.name),
            }
            for block in posterior.blocks
        },
        "products": {
            product.name: {
                "shape": list(product.shape),
                "factors": [block.name for block in product.factors],
                "structure": structure_of(posterior.curvature[product.name]),
                **carried_parts(posterior.prior, product.name),
            }
            for product in posterior.products
        },
    }


def carried_parts(prior: GaussianPrior, name: str) -> dict[str, Any]:
    """What a prior carries in a block, for the JSON; nothing where it carries nothing."""
    parts: dict[str, Any] = {}
    if name in prior.held:
        parts["carried"] = structure_of(prior.carried[name])
    if name in prior.merge_errors:
        parts["merge_error"] = prior.merge_errors[name]
    return parts


def posterior_tensors(posterior: Posterior) -> dict[str, Tensor]:
    """Every tensor of a posterior by a path-like name, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for block in posterior.blocks:
        tensors[f"mean/{block.name}"] = posterior.mean[block.name]
        prior_mean = posterior.prior.mean_of(block)
        if prior_mean is not None:
            tensors[f"prior_mean/{block.name}"] = prior_mean
    places = {"curvature": posterior.curvature, "carried": posterior.prior.held}
    for place, operators in places.items():
        for name, operator in operators.items():
            for part, tensor in operator.tensors().items():
                tensors[f"{place}/{name}/{part}"] = tensor
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
    """Raise unless a record has all its parts; those of numbers are checked where they are read."""
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
    check_described(path, record["model"])


def read_setting(record: Mapping[str, Any], name: str, method: str) -> Any:
    """A setting of a record, which must have the method that it is there for."""
    setting = decode(record[name])
    if not hasattr(setting, method):
        raise TypeError(f"{name} is {record[name]!r}")
    return setting


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
    products, placed = read_products(blocks, record), is_placed(record["curvature"])
    entries = {**record["blocks"], **record.get("products", {})}
    prior_means = with_prefix(tensors, "prior_mean/")
    parts: tuple[Observed, ...] = (*blocks, *products)
    like = {**weights, **{product.name: weights[product.up.name] for product in products}}
    held = {
        part.name: part
        for part in parts
        if "carried" in entries[part.name] or with_prefix(tensors, f"carried/{part.name}/")
    }
    prior = GaussianPrior(
        {b.name: float(entries[b.name]["prior_precision"]) for b in blocks},
        {name: mean.to(weights[name]) for name, mean in prior_means.items()},
        {
            n: read_operator(part, entries, tensors, None if placed else like[n], "carried")
            for n, part in held.items()
        },
        blocks,
        {n: float(e["merge_error"]) for n, e in entries.items() if "merge_error" in e},
        tuple(product for product in products if product.name in held),
    )
    mean = {b.name: tensors[f"mean/{b.name}"].to(weights[b.name]) for b in blocks}
    prior = prior.linearized_at(mean)
    curvature = {
        p.name: read_operator(p, entries, tensors, None if placed else like[p.name], "curvature")
        for p in parts
    }
    return Posterior(
        blocks,
        mean,
        prior,
        curvature,
        decompose_all(prior, {b.name: curvature[b.name] for b in blocks}),
        float(record["log_likelihood"]),
        int(record["n_rows"]),
        int(record["n_outputs"]),
        products,
    )


def read_products(blocks: tuple[Block, ...], record: Mapping[str, Any]) -> tuple[Product, ...]:
    """The products that a record has curvature of; files from before there were any have none.

    Raises:
        CheckpointError: If the blocks do not make one of them.
    """
    found = {product.name: product for product in find_products(blocks)}
    saved = record.get("products", {})
    if unknown := [name for name in saved if name not in found]:
        raise CheckpointError(
            f"This posterior is about the product {unknown[0]!r}, and the model has no such LoRA "
            "layer. Load it with the adapter it was saved beside."
        )
    return tuple(found[name] for name in saved)


def read_operator(
    block: Observed,
    entries: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    like: Tensor | None,
    place: str,
) -> BlockOperator:
    """The operator of one block or product: `place` is "curvature" or "carried".

    It goes to the device and into the dtype of `like`, or stays on the CPU as it was saved.
    """
    structure = entries[block.name]["structure" if place == "curvature" else place]
    # Copied: inside a file tensors are not aligned, and kernels then add up in another order.
    own = {
        part: tensor.clone() if like is None else tensor.to(like, copy=True)
        for part, tensor in with_prefix(tensors, f"{place}/{block.name}/").items()
    }
    return restored(block.name, str(structure), own, block.shape[0])


def is_placed(setting: Any) -> bool:
    """Whether a saved estimator, or one inside it, keeps its factors apart from the model."""
    if not isinstance(setting, dict):
        return False
    return setting.get("type") == Placed.__name__ or any(map(is_placed, setting.values()))


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
