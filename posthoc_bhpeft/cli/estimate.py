"""`bhpeft estimate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from posthoc_bhpeft.cli.options import (
    BaseOption,
    CheckpointArgument,
    CurvatureChoice,
    DebugOption,
    DirectionsChoice,
    FactorRankOption,
    JsonOption,
    QuantizeAsTrainedOption,
    QuietOption,
)
from posthoc_bhpeft.cli.output import running

if TYPE_CHECKING:
    from posthoc_bhpeft.size import Estimate

_BASES = ("float32", "bfloat16", "float16")


def estimate(
    checkpoint: CheckpointArgument,
    curvature: Annotated[
        CurvatureChoice, typer.Option("--curvature", help="Estimator of the curvature.")
    ] = CurvatureChoice.kronecker,
    directions: Annotated[
        DirectionsChoice, typer.Option("--directions", help="Output directions.")
    ] = DirectionsChoice.auto,
    rank: FactorRankOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows a batch.")] = 16,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=1, help="Tokens a row. [default: of the training]"),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Training rows. [default: of the training]")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the base model: float32, bfloat16, float16.")
    ] = "float32",
    quantize: QuantizeAsTrainedOption = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0, help="GB of a card: does it fit, model included?"),
    ] = None,
    model: BaseOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what `bhpeft fit` would need, in bytes and passes, before any of it is done.

    Only configs are read: the model is made of shapes, so that one of billions of weights is
    estimated in seconds on any machine.

    \b
    Examples:
      bhpeft estimate out
      bhpeft estimate out --dtype bfloat16 --rank 32 --memory 80
      bhpeft estimate out --dtype bfloat16 --quantize 4bit --rank 32 --memory 24
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.checkpoints import checkpoint_folder
        from posthoc_bhpeft.cli.fit import chosen_curvature
        from posthoc_bhpeft.cli.rows import open_checkpoint
        from posthoc_bhpeft.errors import ConfigError
        from posthoc_bhpeft.size import estimate as ask
        from posthoc_bhpeft.size import shapes_of, tables

        if dtype not in _BASES:
            raise ConfigError(f"--dtype {dtype} is none of {', '.join(_BASES)}.")
        found = open_checkpoint(checkpoint_folder(checkpoint))
        recorded = None if found.record is None else found.record.train_rows
        shapes = shapes_of(checkpoint, base=model, dtype=dtype)
        needed = ask(
            found.task.outline(shapes, found.n_choices),
            curvature=chosen_curvature(curvature, directions, rank),
            likelihood=found.likelihood,
            batch_size=batch_size,
            length=max_length or found.max_length,
            n_rows=recorded if rows is None else rows,
            quantization=found.storage(dtype, quantize)["quantization"],
        )
        for number, table in enumerate(tables(needed)):
            out.table(table.title, table.columns, table.rows)
            if number == 1 and memory is not None:
                out.say(f"  {_verdict(needed, memory)}\n")
        out.finish(command="estimate", **_summary(needed, memory))


def _verdict(needed: Estimate, memory: float) -> str:
    from posthoc_bhpeft.size import bytes_text

    total = needed.work.model_bytes + needed.peak
    fits = "fits" if needed.fits(int(memory * 10**9)) else "does not fit"
    return (
        f"{fits} on a card of {memory:g} GB: the model takes "
        f"{bytes_text(needed.work.model_bytes)}, model and fit {bytes_text(total)}"
    )


def _summary(needed: Estimate, memory: float | None) -> dict[str, Any]:
    fits = None if memory is None else needed.fits(int(memory * 10**9))
    return {
        "curvature": repr(needed.work.curvature),
        "blocks": len(needed.work.blocks),
        "weights": needed.n_weights,
        "model_bytes": needed.work.model_bytes,
        "peak_bytes": needed.peak,
        "phases": needed.phases,
        "resting_bytes": needed.resting,
        "file_bytes": needed.saved,
        "passes": [vars(one) for one in needed.passes],
        "cheaper": {one.change: one.peak for one in needed.cheaper()},
        "fits": fits,
    }
