"""Help of a command with many options: in groups, as plain text."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

ROWS = "Rows"
COMPARED = "Compared with"
MEASURED = "What is measured"
RESULT = "What comes of it"
RUN = "How it runs"


class Grouped(TyperCommand):
    """A command whose help shows options under the panel each of them names."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by panel, in the order in which panels first occur."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            usual = "Arguments" if param.param_type_name == "argument" else "Help"
            panels.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)
