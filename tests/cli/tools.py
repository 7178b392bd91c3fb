"""Calling the command line in tests."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from posthoc_bhpeft.cli import app

TINY = (
    "--rank",
    "2",
    "--bottleneck",
    "4",
    "--virtual-tokens",
    "2",
    "--lr",
    ".02",
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments):
    """Run with --json; the result, once it is sure that stdout holds nothing else."""
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(*arguments):
    """Run; the message of the error, once it is sure that nothing but a message was shown."""
    done = call(*arguments)
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    return done.stderr
