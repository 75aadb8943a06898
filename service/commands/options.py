"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print documents (JSON) instead of pictures.")]
Url = Annotated[
    str | None, typer.Option("--url", envvar="STILLHOUSE_URL", help="The server.", show_default="http://127.0.0.1:8431")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, such as job_01k...")]
Filter = Annotated[
    str, typer.Option("--filter", help="Only those, such as 'state = FAILED AND labels.team = \"vision\"'.")
]
OrderBy = Annotated[str, typer.Option("--order-by", help="Such as 'priority desc, created_at'.")]
SpecFile = Annotated[str, typer.Argument(metavar="SPEC", help="A job in YAML or JSON; - reads standard input.")]
Out = Annotated[Path, typer.Option("--out", help="The folder the student is written to.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait; after that, exit code 124.")]
