# SPDX-License-Identifier: Apache-2.0
"""`longmem compare`: paired differences between finished runs."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipelines.command.console import open_console, say_json
from pipelines.command.fields import REQUIRED, flag_field, path_argument_field, path_field
from pipelines.command.spec import CommandSpec, command


@dataclass(frozen=True, kw_only=True)
class CompareSpec(CommandSpec):
    """Paired differences between finished runs of one kind, perplexity or icl; the first run is the baseline.

    What differs between the runs is shown first. Runs of other texts are refused.

    **Example:** `longmem compare runs/big runs/small --out compared.html`
    """

    runs: list[Path] = path_argument_field(REQUIRED, "Output folders of finished jobs.", "RUN...")
    as_json: bool = flag_field("Print the comparison as JSON, instead of tables.", names=("--json",))
    out: Path | None = path_field(None, "Page to write, FILE.html: self-contained.", shown="none")

    def run(self, console: Console) -> None:
        from pipelines.compare.compare import compare

        compared = compare(self.runs)
        if self.out is not None:
            from pipelines.compare.report import write_comparison

            write_comparison(self.out, compared)
        if self.as_json:
            say_json(compared, indent=2)
        else:
            from pipelines.compare.console import print_comparison

            print_comparison(open_console(), compared)
        if self.out is not None:
            console.print(f"  page: {escape(str(self.out))}", soft_wrap=True)


compare = command(CompareSpec)
