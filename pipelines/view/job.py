# SPDX-License-Identifier: Apache-2.0
"""Choice of the page by the kind of job whose folder is shown."""

from pathlib import Path

from longmem.errors import ConfigError
from pipelines.view.answers import Answers
from pipelines.view.icl_answers import IclAnswers
from pipelines.view.icl_folder import IclFolder
from pipelines.view.probe_answers import ProbeAnswers, ProbeFolder
from pipelines.view.questions import AbstractAnswers
from pipelines.view.run_folder import RunFolder
from pipelines.view.suffix_answers import SuffixAnswers, SuffixFolder
from pipelines.view.tables import read_summary


def open_answers(path: Path) -> AbstractAnswers:
    """Return the answers about a finished job. Raises ConfigError for a folder that no page can show."""
    summary = read_summary(path)
    if "model" in summary and "perplexity" in summary:
        return Answers(RunFolder(path))
    if "model" in summary and "grid" in summary and "tasks" in summary:
        return IclAnswers(IclFolder(path))
    if "model" in summary and "conditions" in summary and "num_trials" in summary:
        return ProbeAnswers(ProbeFolder(path))
    if "model" in summary and "lengths" in summary and "suffix_tokens" in summary:
        return SuffixAnswers(SuffixFolder(path))
    raise ConfigError(
        f"{path} is the folder of another kind of job; those of `longmem perplexity --tokens`, `longmem icl`, "
        "`longmem suffix --tokens` and `longmem probe --tokens` can be shown"
    )
