"""`bhpeft fit`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posthoc_bhpeft.cli.options import (
    BaseOption,
    CheckpointArgument,
    CurvatureChoice,
    DebugOption,
    DeviceOption,
    DirectionsChoice,
    DropOption,
    FactorRankOption,
    GroupChoice,
    JsonOption,
    LabelColumnsOption,
    LabelOption,
    OverwriteOption,
    PairOption,
    PriorChoice,
    QuantizeAsTrainedOption,
    QuietOption,
    ResponseOption,
    SeparatorOption,
    TextOption,
)
from posthoc_bhpeft.cli.output import running

if TYPE_CHECKING:
    from posthoc_bhpeft.api import BayesianPeft
    from posthoc_bhpeft.curvature import Curvature
    from posthoc_bhpeft.selection import PriorRule

FIT_FILE = "fit.json"
_KEPT = ("training.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def fit(
    checkpoint: CheckpointArgument,
    data: Annotated[
        str | None, typer.Option("--data", help="Training rows. [default: those trained on]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: into the CHECKPOINT folder]")
    ] = None,
    prior: Annotated[
        PriorChoice,
        typer.Option(
            "--prior",
            help="How the prior precision is chosen: by training rows with some of their tokens "
            "hidden (which finds a temperature too); matched to the network's log-odds; by "
            "what the data see of the weights; by evidence; by held-out rows; or given with "
            "--precision.",
        ),
    ] = PriorChoice.left_out,
    precision: Annotated[
        float | None, typer.Option("--precision", help="Prior precision for --prior fixed.")
    ] = None,
    per: Annotated[
        GroupChoice,
        typer.Option("--per", help="With --prior evidence or visible: one precision for each."),
    ] = GroupChoice.model,
    curvature: Annotated[
        CurvatureChoice, typer.Option("--curvature", help="Estimator of the curvature.")
    ] = CurvatureChoice.kronecker,
    directions: Annotated[
        DirectionsChoice,
        typer.Option("--directions", help="Output directions: cost against precision."),
    ] = DirectionsChoice.auto,
    rank: FactorRankOption = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Fit on at most so many of the rows.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of draws and signs. [default: of the training]"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows a batch.")] = 16,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep the sums so far in OUTPUT.partial, and go on from those that are there: run "
            "the same command again after it was killed.",
        ),
    ] = False,
    save_every: Annotated[
        float | None,
        typer.Option(
            "--save-every", help="Seconds between two writings of --resume. [default: 60]"
        ),
    ] = None,
    text_column: TextOption = None,
    text_pair_column: PairOption = None,
    label_column: LabelOption = None,
    label_columns: LabelColumnsOption = None,
    label_separator: SeparatorOption = None,
    response_column: ResponseOption = None,
    drop_unlabelled: DropOption = False,
    model: BaseOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Of the base model: float32, bfloat16, float16, auto. [default: of the training]",
        ),
    ] = None,
    quantize: QuantizeAsTrainedOption = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Fit a posterior over the trained weights of a checkpoint.

    Without --data it reads the very rows the checkpoint was trained on, in the way that
    training.json records; other columns are for other rows, so they go with --data. Held-out rows
    are not needed. What the checkpoint is asked (classes, several labels, a number, choices, a
    language model that answers or writes a text) is found, and said.

    \b
    Examples:
      bhpeft fit out
      bhpeft fit out --prior evidence --per kind --output out-evidence
      bhpeft fit lora-from-elsewhere --data reviews.csv --output fitted
      bhpeft fit lora-of-a-language-model --data arc_easy --output fitted
      bhpeft fit lora-that-writes --data prompts-and-completions.jsonl --output fitted
      bhpeft fit out --data much.jsonl --output fitted --resume
      bhpeft fit qlora-from-elsewhere --data reviews.csv --output fitted --quantize 4bit
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        import torch

        from posthoc_bhpeft.api import bayesianize
        from posthoc_bhpeft.checkpoints import (
            checkpoint_folder,
            load_adapter,
            resolve_model,
        )
        from posthoc_bhpeft.cli.device import best_device
        from posthoc_bhpeft.cli.fit_checks import check_as_trained, check_held_out, check_prior
        from posthoc_bhpeft.cli.resuming import describe_start, resume_beside
        from posthoc_bhpeft.cli.rows import (
            absolute,
            batches_of,
            names_in,
            open_checkpoint,
            tokenizer_of,
            training_rows,
        )
        from posthoc_bhpeft.cli.tasks import likelihood_of, name_labels
        from posthoc_bhpeft.data import RowSettings
        from posthoc_bhpeft.folders import CHECKPOINT, check_output, check_writable

        folder = checkpoint_folder(checkpoint)
        found = open_checkpoint(folder)
        storage = found.storage(dtype, quantize)
        target = folder if output is None else output
        if _same(target, folder):
            check_writable(folder)
        else:
            reads = found.sources(data, model)
            check_output(target, overwrite=overwrite, kind=CHECKPOINT, reads=reads)
        kept = resume_beside(target, wanted=resume, seconds=save_every)
        check_prior(prior, precision, per)
        named = RowSettings(
            source="" if data is None else absolute(data),
            validation=prior is PriorChoice.held_out,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            label_columns=names_in(label_columns),
            label_separator=label_separator,
            response_column=response_column,
            responses=None,
            drop_unlabelled=drop_unlabelled,
            seed=seed or 0,
        )
        if data is None:
            check_as_trained(found.record, named)
        chosen = training_rows(found, None if data is None else named, max_rows=max_rows, seed=seed)
        if prior is PriorChoice.held_out:
            check_held_out(chosen.validation)
        found = found.asked_by(chosen.train)
        task = found.task.describe(chosen.train)
        for note in (*chosen.notes, task):
            out.say(note)
        started = time.perf_counter()
        base = None if model is None else resolve_model(model)
        tuned = load_adapter(folder, base=base, **storage).to(best_device(device))
        name_labels(tuned, chosen.train)
        origin = _base_of(tuned)

        def loader(rows: Any) -> Any:
            return batches_of(found, rows, origin, batch_size)

        held_out = None if chosen.validation is None else loader(chosen.validation)
        batches = loader(chosen.train)
        if kept is not None:
            out.say(describe_start(kept, len(batches)))
        bayes = bayesianize(
            found.task.wrap(tuned, chosen.train, tokenizer_of(found, origin)),
            batches,
            likelihood=likelihood_of(chosen.train, found.task),
            curvature=chosen_curvature(curvature, directions, rank),
            prior=_prior(prior, precision, per, held_out),
            generator=torch.Generator().manual_seed(seed or 0),
            resume=kept,
            progress=out.progress,
        )
        seconds = round(time.perf_counter() - started, 1)
        summary = {
            "rows": len(chosen.train),
            "source": chosen.train.source,
            "split": chosen.train.split,
            "task": task,
            "digest": chosen.train.digest,
            "prior": prior.value,
            "reason": bayes.reason,
            "curvature": repr(bayes.curvature),
            "log_marginal_likelihood": bayes.log_marginal_likelihood(),
            "seconds": seconds,
        }
        _write(bayes, folder, target, summary, overwrite=overwrite)
        out.say(bayes.explain())
        out.say(f"fitted in {seconds:.0f} s, saved to {target}; next: bhpeft predict {target}")
        out.finish(
            command="fit", output=target, blocks=len(bayes.blocks), notes=chosen.notes, **summary
        )


def _same(target: Path, folder: Path) -> bool:
    return target.expanduser().resolve() == folder.resolve()


def _write(
    bayes: BayesianPeft, folder: Path, target: Path, summary: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Into the checkpoint itself; or as a folder of its own, in which nothing older stays.

    What an earlier fit of another checkpoint left (its training.json, its tokenizer) would decide
    how texts are read for this one.
    """
    from posthoc_bhpeft.checkpoints import write_json
    from posthoc_bhpeft.folders import CHECKPOINT, whole_folder

    if _same(target, folder):
        bayes.save_pretrained(target)
        write_json(target / FIT_FILE, summary)
        return
    with whole_folder(target, overwrite=overwrite, kind=CHECKPOINT) as fresh:
        bayes.write_files(fresh, target.name if target.is_absolute() else str(target))
        for name in _KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, fresh / name)
        write_json(fresh / FIT_FILE, summary)


def chosen_curvature(
    choice: CurvatureChoice, directions: DirectionsChoice, rank: int | None
) -> Curvature:
    """The estimator that the options name.

    Raises:
        ConfigError: If a rank is given for one that has none.
    """
    from posthoc_bhpeft import curvature as c
    from posthoc_bhpeft.errors import ConfigError

    if rank is not None and choice is not CurvatureChoice.kronecker:
        raise ConfigError(f"--rank is for --curvature kronecker, not {choice.value}.")
    along = {
        DirectionsChoice.auto: c.Auto(),
        DirectionsChoice.exact: c.Exact(),
        DirectionsChoice.contrasts: c.Contrasts(),
        DirectionsChoice.signs: c.RandomSigns(),
        DirectionsChoice.fisher: c.EmpiricalFisher(),
    }[directions]
    estimators: dict[CurvatureChoice, Curvature] = {
        CurvatureChoice.kronecker: c.KroneckerGGN(directions=along, rank=rank),
        CurvatureChoice.kfac: c.KFAC(directions=along),
        CurvatureChoice.kfac_reduce: c.KFAC(reduce=True, directions=along),
        CurvatureChoice.diagonal: c.DiagonalGGN(directions=along),
        CurvatureChoice.dense: c.DenseGGN(directions=along),
    }
    return estimators[choice]


def _prior(
    choice: PriorChoice, precision: float | None, per: GroupChoice, held_out: Any
) -> PriorRule:
    from posthoc_bhpeft import selection as s

    if precision is not None:
        return s.FixedPrecision(precision)
    if choice is PriorChoice.evidence:
        return s.MarginalLikelihood(s.Grouping(per.value))
    if choice is PriorChoice.visible:
        return s.VisiblePrecision(s.Grouping(per.value))
    if choice is PriorChoice.held_out:
        return s.HeldOut(held_out)
    return s.MatchedPrecision() if choice is PriorChoice.matched else s.LeaveOneOut()


def _base_of(model: Any) -> str:
    return str(model.get_base_model().config._name_or_path)
