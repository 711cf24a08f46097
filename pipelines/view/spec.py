# SPDX-License-Identifier: Apache-2.0
"""`longmem view`: a local page of what each token, item or question of a finished job read, or a passage of it."""

import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from longmem.errors import ConfigError
from longmem.wording import counted
from pipelines.command.console import say
from pipelines.command.fields import REQUIRED, flag_field, path_argument_field, path_field, text_field, whole_field
from pipelines.command.interrupts import tidying
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    # loads pyarrow
    from pipelines.view.answers import Answers
    from pipelines.view.questions import AbstractAnswers


@dataclass(frozen=True, kw_only=True)
class ViewSpec(CommandSpec):
    """A page in the browser: what each token or item read from memory, how far it was trusted, whether that was right.

    The folder is that of a finished `longmem icl`, or of `longmem perplexity`, `suffix` or `probe` with `--tokens`. The
    page is served to this machine until Ctrl-C.

    **Example:** `longmem view runs/moby`
    """

    out: Path = path_argument_field(
        REQUIRED, "Output folder of a finished `longmem icl`, or perplexity, suffix or probe with `--tokens`.", "OUT"
    )
    port: int = whole_field(0, "Port of the page on 127.0.0.1.", least=0, most=65_535, shown="a free one")
    no_open: bool = flag_field("Print the address and open no browser.")
    export: Path | None = path_field(
        None, "Write one passage of a document as a page of its own to this file, and end.", shown="none"
    )
    document: str | None = text_field(None, "Document of the exported passage.", shown="the only one")
    from_token: int | None = whole_field(
        None, "First token of the exported passage.", names=("--from",), shown="1, the first"
    )
    to_token: int | None = whole_field(
        None, "Token after the last one of the exported passage.", names=("--to",), shown="2,000 tokens later"
    )

    def run(self, console: Console) -> None:
        given = {"document": "--document", "from_token": "--from", "to_token": "--to"}
        if self.export is None and (named := [flag for name, flag in given.items() if name in self.given]):
            raise ConfigError(
                f"{', '.join(named)}: only for a passage that --export FILE writes; add --export, or leave it out"
            )
        from pipelines.view.answers import Answers
        from pipelines.view.job import open_answers

        answers = open_answers(self.out)
        if self.export is None:
            self._serve(answers, console)
        elif isinstance(answers, Answers):
            self._export(answers, self.export)
        else:
            raise ConfigError(f"--export writes a passage of a document, and {self.out} has items; leave it out")

    def _export(self, answers: "Answers", path: Path) -> None:
        if path.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"--export writes a page: expected a name that ends in .html, got {path}")
        from pipelines.job.output import write_bytes
        from pipelines.view.answers import MOST_TOKENS, PAGE_TOKENS
        from pipelines.view.page import passage, render

        document = answers.number_of(self.document)
        first = self.from_token or 1
        count = (first + PAGE_TOKENS if self.to_token is None else self.to_token) - first
        if count < 1:
            raise ConfigError(f"--to must be after --from, got {self.to_token} and {first}")
        if count > MOST_TOKENS:
            most = counted(MOST_TOKENS, "token")
            raise ConfigError(f"a passage must be at most {most}, got {count:,} from --from to --to")
        data = passage(answers, document, first, count)
        if not (num_tokens := len(data["page"]["texts"])):
            end = data["run"]["documents"][document]["end"]
            raise ConfigError(f"--from {first} is after the last token of the document, {end - 1:,}")
        # a text may look like a secret; the page quotes it as the document has it
        write_bytes(
            path, render(data["run"]["model"], data).encode("utf-8", "replace"), advice="choose another --export"
        )
        say(f"{path} holds {counted(num_tokens, 'token')}")

    def _serve(self, answers: "AbstractAnswers", console: Console) -> None:
        from pipelines.view.page import render
        from pipelines.view.server import ViewServer

        page = render(str(answers.run()["model"]), kind=answers.page_kind)
        with ViewServer(answers, page, self.port) as server:
            say(server.url)
            console.print(f"{escape(str(self.out))} is shown there until Ctrl-C, to this machine only", soft_wrap=True)
            if not self.no_open and _has_screen():
                webbrowser.open(server.url)
            try:
                with tidying():
                    server.serve_forever()
            except KeyboardInterrupt:
                return


def _has_screen() -> bool:
    """Return whether a browser can open a window: one of a terminal would take the terminal over."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


view = command(ViewSpec)
