# SPDX-License-Identifier: Apache-2.0
"""Options of every job for its result, and for what it prints besides."""

from dataclasses import dataclass

from longmem.errors import ConfigError
from pipelines.command.console import Detail
from pipelines.command.fields import flag_field


@dataclass(frozen=True, kw_only=True)
class SummaryOption:
    """Form of the result on standard output, and what goes to standard error."""

    as_json: bool = flag_field("Print the summary as JSON, instead of a table.", names=("--json",))
    quiet: bool = flag_field("Print the result and errors only.", names=("--quiet", "-q"))
    verbose: bool = flag_field("Also print every event of the job as it happens.", names=("--verbose", "-v"))

    @property
    def detail(self) -> Detail:
        if self.quiet and self.verbose:
            raise ConfigError("--quiet and --verbose contradict each other; give one of them")
        return "quiet" if self.quiet else "verbose" if self.verbose else "normal"
