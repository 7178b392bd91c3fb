"""The command line `bhpeft`: train, fit, predict, demo."""

from posthoc_bhpeft.cli.app import app, main

__all__ = ["app", "main"]
