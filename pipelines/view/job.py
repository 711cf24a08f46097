# SPDX-License-Identifier: Apache-2.0
"""Choice of the page by the kind of job whose folder is shown."""

from pathlib import Path

from longmem.errors import ConfigError
from pipelines.view.answers import Answers
from pipelines.view.icl_answers import IclAnswers
from pipelines.view.icl_folder import IclFolder
from pipelines.view.questions import AbstractAnswers
from pipelines.view.run_folder import RunFolder
from pipelines.view.tables import read_summary


def open_answers(path: Path) -> AbstractAnswers:
    """Return the answers about a finished job. Raises ConfigError for a folder that no page can show."""
    summary = read_summary(path)
    if "model" in summary and "perplexity" in summary:
        return Answers(RunFolder(path))
    if "model" in summary and "grid" in summary and "tasks" in summary:
        return IclAnswers(IclFolder(path))
    raise ConfigError(
        f"{path} is the folder of another kind of job; those of `longmem perplexity --tokens` and `longmem icl` can be "
        "shown"
    )
