# SPDX-License-Identifier: Apache-2.0
"""`longmem monitoring`: what Prometheus and Grafana need to watch LongMem."""

from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from pipelines.command.console import say, say_json
from pipelines.command.fields import REQUIRED, flag_field, path_argument_field, text_field
from pipelines.command.spec import CommandSpec, command

app = typer.Typer(no_args_is_help=True, help="Files for Prometheus and Grafana.")


@app.callback()
def _group() -> None:
    """Files for Prometheus and Grafana."""


@dataclass(frozen=True, kw_only=True)
class ExportSpec(CommandSpec):
    """Write a Grafana dashboard, Prometheus alert rules, a scrape configuration and a README.

    **Example:** `longmem monitoring export monitoring`
    """

    folder: Path = path_argument_field(REQUIRED, "Folder to write into; made if it is absent.", "DIR")
    ray_folder: str = text_field("/tmp/ray", "Ray's --temp-dir on the head node.")
    as_json: bool = flag_field("Print the paths as one JSON object.", names=("--json",))

    def run(self, console: Console) -> None:  # noqa: ARG002 - prints results only
        from pipelines.watch.export import export_monitoring

        written = [str(path) for path in export_monitoring(self.folder, self.ray_folder)]
        if self.as_json:
            say_json({"written": written})
            return
        for path in written:
            say(path)


app.command("export")(command(ExportSpec))
