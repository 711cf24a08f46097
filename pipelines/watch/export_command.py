"""`longmem monitoring`: what Prometheus and Grafana need to watch LongMem."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command.command_line import exit_codes
from pipelines.command.console import open_console, say
from pipelines.command.option_types import path_argument, text_option

app = typer.Typer(no_args_is_help=True, help="Files for Prometheus and Grafana.")


@app.callback()
def _group() -> None:
    """Files for Prometheus and Grafana."""


@app.command()
def export(
    folder: Annotated[Path, path_argument(metavar="DIR", help="Folder to write into; made if it is absent.")],
    ray_folder: Annotated[str, text_option(help="Ray's --temp-dir on the head node.")] = "/tmp/ray",
) -> None:
    """Write a Grafana dashboard, Prometheus alert rules, a scrape configuration and a README.

    **Example:** `longmem monitoring export monitoring`
    """
    with exit_codes(open_console(stderr=True), folder):
        from pipelines.watch.export import export_monitoring

        for path in export_monitoring(folder, ray_folder):
            say(str(path))
