"""`bhpeft predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posthoc_bhpeft.cli.options import (
    BaseOption,
    CheckpointArgument,
    DebugOption,
    DeviceOption,
    DropOption,
    JsonOption,
    LabelColumnsOption,
    LabelOption,
    LinkChoice,
    OverwriteOption,
    PairOption,
    PredictiveChoice,
    QuietOption,
    ResponseOption,
    SeparatorOption,
    TextOption,
)
from posthoc_bhpeft.cli.output import running

if TYPE_CHECKING:
    from posthoc_bhpeft.api import Predictive
    from posthoc_bhpeft.cli.rows import Checkpoint


def predict(
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for predictions.jsonl and metrics.json.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Folder, file or hub name. [default: the data trained on]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="[default: test, or all rows of a single file]")
    ] = None,
    predictive: Annotated[
        PredictiveChoice,
        typer.Option(
            "--predictive",
            help="As it was fitted, with its temperature; linearised anew; by sampled weights; or "
            "by the trained weights (map).",
        ),
    ] = PredictiveChoice.fitted,
    link: Annotated[
        LinkChoice | None,
        typer.Option("--link", help="From logits to probabilities, linearised anew."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=1, help="Draws, of sampled and monte-carlo. [default: 16, 512]"
        ),
    ] = None,
    review: Annotated[
        bool,
        typer.Option("--review", help="Also say which rows go to a human, by the saved rule."),
    ] = False,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Predict at most so many rows.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows a batch.")] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            min=1,
            help="Tokens that a language model writes a row, at most. [default: 64]",
        ),
    ] = None,
    text_column: TextOption = None,
    text_pair_column: PairOption = None,
    label_column: LabelOption = None,
    label_columns: LabelColumnsOption = None,
    label_separator: SeparatorOption = None,
    response_column: ResponseOption = None,
    drop_unlabelled: DropOption = False,
    ignore_labels: Annotated[
        bool, typer.Option("--ignore-labels", help="Predict all rows as if they had no label.")
    ] = False,
    model: BaseOption = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict a split: probabilities and how uncertain they are, and why.

    predictions.jsonl has a row each: index, label (where known), prediction, probabilities, and in
    nats total, aleatoric (ambiguous text) and epistemic uncertainty (unknown to the model); novelty
    grows with how unlike the training rows a row is. With --review also review (true: for a human)
    and, where the rule makes sets, the set of labels. Where every word has a label, these are lists
    with an entry for each of `words`, probability is that of the predicted class, and words.jsonl
    has a row a word with all probabilities.

    Of a language model that writes, a row has the text, its tokens with the epistemic uncertainty
    of each, means of all three over them, its log_probability and the spread of that over draws;
    where responses are given, label, and nll a token of it by the posterior and by the trained
    weights.

    Of several labels a row, label and prediction have a 0 or 1 for each, the uncertainties are sums
    over labels, and label_epistemic tells how much of the epistemic one is of which label.

    \b
    Examples:
      bhpeft predict out --output preds
      bhpeft predict out --data new.csv --ignore-labels --output preds
      bhpeft predict out --predictive map --output preds-map
      bhpeft predict out --data new.csv --ignore-labels --review --output preds
      bhpeft predict writer --data prompts.jsonl --max-new-tokens 32 --output texts
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.checkpoints import checkpoint_folder, resolve_model, write_json
        from posthoc_bhpeft.cli.device import best_device
        from posthoc_bhpeft.cli.predictions import (
            load_predictor,
            measure,
            prediction_rows,
            write_rows,
        )
        from posthoc_bhpeft.cli.rows import (
            batches_of,
            check_no_stream,
            drawn_rows,
            names_in,
            open_checkpoint,
            reading,
            rows_to_predict,
            tokenizer_of,
        )
        from posthoc_bhpeft.cli.worded import WordPredictions
        from posthoc_bhpeft.cli.written import write_texts
        from posthoc_bhpeft.data import RowSettings, in_row_order
        from posthoc_bhpeft.data.forms import Form
        from posthoc_bhpeft.folders import PREDICTIONS, check_output, whole_folder

        check_no_stream(checkpoint)
        folder = checkpoint_folder(checkpoint)
        found = open_checkpoint(folder)
        reads = found.sources(data, model)
        check_output(output, overwrite=overwrite, kind=PREDICTIONS, reads=reads)
        of_words = found.task is Form.WORDS
        _check_asked(found, predictive, review, max_new_tokens)
        of_tokens = of_words or found.task.writes
        asked = _predictive(predictive, link, samples, seed, of_tokens=of_tokens)
        named = RowSettings(
            source=data or "",
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            label_columns=names_in(label_columns),
            label_separator=label_separator,
            response_column=response_column,
            drop_unlabelled=drop_unlabelled,
        )
        rows = rows_to_predict(found, reading(found, named), split, ignore_labels=ignore_labels)
        rows = drawn_rows(rows, max_rows, seed)
        out.say(f"{len(rows)} rows of {rows.place}; {'; '.join(rows.notes)}")
        predictor = load_predictor(
            folder,
            base=None if model is None else resolve_model(model),
            storage=found.storage(None, None),
            device=best_device(device),
            point=predictive is PredictiveChoice.map,
            likelihood=found.likelihood,
        )
        if predictor.bayes is None:
            predictor = predictor.asked(found.task, rows, tokenizer_of(found, predictor.base))
        predictor.check_choices(rows)
        if link is not None:
            predictor.check_link()
        names = found.names_for_reading or rows.label_names
        chosen = asked or predictor.usual
        if review:
            predictor.check_review(chosen)
        reviews: dict[str, Any] = {}
        if found.task.writes:
            texts = write_texts(
                found,
                predictor,
                rows,
                predictive=chosen,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens or 64,
                progress=out.progress,
            )
            metrics, files = texts.measure(), {"predictions": texts.text_rows()}
        else:
            loader = batches_of(found, rows, predictor.base, batch_size)
            prediction = predictor.predict(loader, chosen, review=review, progress=out.progress)
            prediction = in_row_order(loader, prediction)
            reviews = predictor.describe_review(prediction)
            if of_words:
                words = WordPredictions.of(rows, prediction, loader.dataset.places)
                out.say(words.describe())
                metrics = words.measure()
                files = {"predictions": words.text_rows(names), "words": words.word_rows(names)}
            else:
                metrics = measure(prediction, rows)
                files = {"predictions": prediction_rows(prediction, rows, names)}
        with whole_folder(output, overwrite=overwrite, kind=PREDICTIONS) as fresh:
            for name, lines in files.items():
                write_rows(fresh / f"{name}.jsonl", lines)
            about = {
                "checkpoint": str(folder),
                "data": rows.source,
                "split": rows.shown_split,
                "rows": len(rows),
                "predictive": repr(chosen),
                "label_names": names,
                "metrics": metrics,
                **reviews,
            }
            write_json(fresh / "metrics.json", about)
        if metrics:
            figures = [
                [name, f"{value:.4f}".rstrip("0").rstrip(".")] for name, value in metrics.items()
            ]
            heading = rows.shown_split or Path(rows.source).name
            out.table(f"{heading}, {len(rows)} rows", ["", predictive.value], figures)
        else:
            out.say("no labels, so nothing to measure")
        for reviewed in reviews.values():
            out.say(f"{reviewed['rows']} of {len(rows)} rows go to a human. {reviewed['promise']}")
        out.say(f"wrote {output / 'predictions.jsonl'}")
        out.finish(command="predict", output=output, **about)


def _check_asked(
    found: Checkpoint, choice: PredictiveChoice, review: bool, max_new_tokens: int | None
) -> None:
    """Raise where an option is not for the task of the checkpoint."""
    from posthoc_bhpeft.data.forms import Form
    from posthoc_bhpeft.errors import ConfigError

    folder = str(found.folder)
    if found.task is Form.WORDS and review:
        raise ConfigError(
            f"--review decides about rows, and a row of {folder!r} is a text with a label for "
            "every word. Leave it out: predictions.jsonl says how uncertain each word is, and "
            "`bhpeft audit` of its words.jsonl finds a threshold."
        )
    if found.task.writes and review:
        raise ConfigError(
            f"--review sends a row to a human by its one answer, and {folder!r} writes texts. "
            "Leave it out: predictions.jsonl says how uncertain each text and each of its tokens "
            "is."
        )
    if found.task.writes and choice is PredictiveChoice.map:
        raise ConfigError(
            f"{folder!r} writes texts, greedily and with its trained weights; what --predictive "
            "changes is how uncertain they are, and map knows no uncertainty. Leave it out: "
            "metrics.json also has the NLL of the trained weights."
        )
    if max_new_tokens is not None and not found.task.writes:
        raise ConfigError(
            f"--max-new-tokens is for language models that write, and {folder!r} does not."
        )


def _predictive(
    choice: PredictiveChoice,
    link: LinkChoice | None,
    samples: int | None,
    seed: int,
    *,
    of_tokens: bool,
) -> Predictive | None:
    """The predictive asked for; `None` is the one that was fitted."""
    from posthoc_bhpeft import predictive as p
    from posthoc_bhpeft.errors import ConfigError

    if of_tokens and choice is PredictiveChoice.linearised and link in (None, LinkChoice.log_odds):
        return p.Tangent(samples=samples or 16, seed=seed)
    if of_tokens and link is not None:
        raise ConfigError(
            f"--link {link.value} needs the covariance of all outputs, which at every word would "
            "take too many passes. Words and texts have the link log-odds: leave --link out."
        )
    draws = choice is PredictiveChoice.sampled or link is LinkChoice.monte_carlo
    if samples is not None and not draws:
        raise ConfigError(
            "--samples is for --predictive sampled and --link monte-carlo; nothing else draws."
        )
    anew = (PredictiveChoice.fitted, PredictiveChoice.linearised)
    if link is not None and choice not in anew:
        raise ConfigError(f"--link is for --predictive linearised, not {choice.value}.")
    if choice is PredictiveChoice.fitted and link is None:
        return None
    if choice is PredictiveChoice.map:
        return p.MAP()
    if choice is PredictiveChoice.sampled:
        return p.Sampled(samples=samples or 16, seed=seed)
    links: dict[LinkChoice, p.Link] = {
        LinkChoice.log_odds: p.LogOdds(),
        LinkChoice.monte_carlo: p.MonteCarlo(samples=samples or 512, seed=seed),
        LinkChoice.probit: p.Probit(),
        LinkChoice.bridge: p.LaplaceBridge(),
    }
    return p.Linearized(link=links[link or LinkChoice.log_odds])
