# SPDX-License-Identifier: Apache-2.0
"""Registry of all kinds of jobs, by the name that job.json and status.json hold.

`tests/contract/test_jobs.py` checks every registered kind: status, log, summary, resume, redaction and progress.
"""

from importlib import import_module
from typing import Any

JOBS: dict[str, str] = {
    "perplexity": "pipelines.perplexity.job:Perplexity",
    "icl": "pipelines.icl.job:Icl",
    "suffix": "pipelines.suffix.job:Suffix",
    "probe": "pipelines.probe.job:Probe",
    "train": "pipelines.train.job:Train",
    "fit": "pipelines.fit.job:Fit",
    "pretrain": "pipelines.pretrain.run:Pretrain",
}
"""`module:class` of each kind, imported on first use."""


def job_class(name: str) -> Any:
    """Return the class of a kind of job. Raises KeyError for an unknown name."""
    module, _, attribute = JOBS[name].partition(":")
    return getattr(import_module(module), attribute)
