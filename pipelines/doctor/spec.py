# SPDX-License-Identifier: Apache-2.0
"""`longmem doctor`: options choose between an examination of this machine and one of a backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import typer
from rich.console import Console

from pipelines.command.choices import ComputeDtype
from pipelines.command.command_line import EXIT_BAD_INPUT, check_inputs, check_model, local_or_hub
from pipelines.command.console import open_console, say_json
from pipelines.command.fields import MODEL_SETTING, choice_field, flag_field, path_field, text_field, whole_field
from pipelines.command.layer_options import ReadingOptions
from pipelines.command.options import BackboneOptions, model_settings
from pipelines.command.spec import CommandSpec, command


@dataclass(frozen=True, kw_only=True)
class DoctorSpec(ReadingOptions, BackboneOptions, CommandSpec):
    """Versions, threads, number types, Ray and disk of this machine, and what is wrong with them; or, with `--model`,
    how well each layer of a backbone works as memory.

    **Example:** `longmem doctor`, `longmem doctor --model gpt2 --text book.txt`
    """

    out: Path = path_field(Path(), "Folder whose disk to check.")
    model: str | None = text_field(None, "Instead: can this backbone feed a memory, and which layer should be stored?")
    text: str | None = text_field(None, "With --model: document to measure on.", shown="the language reference")

    reading: bool = flag_field(
        "With --model: measure instead which tokens of a memory every layer should read, with the sizes below; minutes."
    )
    limit_tokens: int | None = whole_field(
        None, "Tokens of the text that --reading measures on.", shown="four segments"
    )
    segment_tokens: int | None = whole_field(
        None, "Tokens of one segment for --reading.", MODEL_SETTING, shown="the model's"
    )
    dtype: ComputeDtype = choice_field("float32", "Compute type of --reading.")
    as_json: bool = flag_field("Print the findings as JSON, instead of a table.", names=("--json",))

    def run(self, console: Console) -> int | None:
        if self.model is None:
            return self._examine_machine()
        check_model(self.model)
        check_inputs(*([self.text] if self.text else []))
        from pipelines.doctor.backbone import examine_model, probe_as_json, render_probe

        if not self.reading:
            self._refuse(self._sizes, "needs --reading")
        if self.reading:
            self._examine_reading(self.model, console)
            return None
        adapter = self.adapter_folder(self.model)
        examined = examine_model(local_or_hub(self.model), self.text, self.special_tokens, console, adapter)
        if self.as_json:
            say_json({"model": self.model, **probe_as_json(examined)}, indent=2)
        else:
            render_probe(examined, self.model, open_console())
        return None

    @property
    def _sizes(self) -> tuple[str, ...]:
        """Return the names of the options of --reading."""
        return (*(each.name for each in fields(ReadingOptions)), "limit_tokens", "segment_tokens")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        """Raise BadParameter for the first of these options that is given."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise typer.BadParameter(why, param_hint=f"--{name.replace('_', '-')}")

    def _examine_reading(self, model: str, console: Console) -> None:
        from longmem.model.source import ModelSource
        from pipelines.doctor.backbone import examine_reading, reading_as_json, render_reading

        settings = {"memory_layers": "all"} | model_settings(self)
        source = ModelSource(
            local_or_hub(model), dtype=self.dtype, settings=settings, adapter=self.adapter_folder(model)
        )
        examined = examine_reading(source, self.text, console, self.limit_tokens)
        if self.as_json:
            say_json({"model": model, **reading_as_json(examined)}, indent=2)
        else:
            render_reading(examined, model, open_console())

    def _examine_machine(self) -> int | None:
        self._refuse((*self._sizes, "text", "adapter", "reading"), "needs --model")
        from actors.cluster import find_cluster
        from pipelines.doctor.machine import diagnose, render

        findings = diagnose(self.out, find_cluster=find_cluster)
        if self.as_json:
            say_json({"findings": [vars(finding) for finding in findings]}, indent=2)
        else:
            render(findings, open_console())
        return EXIT_BAD_INPUT if any(finding.severity == "error" for finding in findings) else None


doctor = command(DoctorSpec)
