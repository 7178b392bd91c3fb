"""The program `bhpeft` and its commands."""

from __future__ import annotations

import typer

from posthoc_bhpeft.cli import audit, convert, demo, estimate, fit, predict, stream, train
from posthoc_bhpeft.cli.panels import Grouped

_HELP = """Uncertainty for fine-tuned Transformers, after training.

\b
  bhpeft demo --output out                                    see it work, 5 minutes
  bhpeft train --model minilm --data DATA --output out        tune adapter, LoRA and prefix
  bhpeft estimate out                                         what a posterior would need
  bhpeft fit out                                              add a posterior over them
  bhpeft predict out --data DATA --split test --output preds  calibrated predictions
  bhpeft audit out --output report                            which answers go to a human?
  bhpeft stream DATA --by date --every year --output out      learn on, round by round
  bhpeft import THEIR_LORA THEIR_PREFIX --output out          begin with what others trained

DATA is a folder with train.jsonl (validation.jsonl, test.jsonl), a csv, json, jsonl or parquet
file, or the name of a data set on the hub. Every command explains itself: bhpeft train --help.
"""
_EPILOG = "Exit codes: 0 all went well, 1 an error with its message, 2 wrong usage."
_AUDIT_EPILOG = f"{_EPILOG[:-1]}, 3 stopped by --fail-if."

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    # Plain help: the examples keep their lines.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("train", epilog=_EPILOG)(train.train)
app.command("estimate", epilog=_EPILOG)(estimate.estimate)
app.command("fit", epilog=_EPILOG)(fit.fit)
app.command("predict", epilog=_EPILOG)(predict.predict)
app.command("audit", cls=Grouped, epilog=_AUDIT_EPILOG)(audit.audit)
app.command("stream", epilog=_EPILOG)(stream.stream)
app.command("import", epilog=_EPILOG)(convert.import_folders)
app.command("export-lora", epilog=_EPILOG)(convert.export_lora_of)
app.command("demo", epilog=_EPILOG)(demo.demo)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version and leave."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"bhpeft {installed('posthoc-bhpeft')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


_top.__doc__ = _HELP


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="bhpeft")
