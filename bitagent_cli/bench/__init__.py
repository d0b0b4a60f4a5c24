"""`bitagent bench`: measures speed on this machine; one module per subject."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")
