# SPDX-License-Identifier: Apache-2.0
"""MLflow: one run for each job, at MLFLOW_TRACKING_URI or where MLflow keeps runs by default."""

import json
import os
from collections.abc import Mapping
from time import time

import mlflow
from mlflow.entities import Metric, Param, RunTag

from pipelines.tracking.tracker import PROJECT, AbstractTracker, Outcome, TrackedRun

STATUS: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
JOB_TAG = "longmem.job"
PARAM_CHARACTERS = 500
"""Longest value of a parameter that every store of MLflow takes."""


class MlflowTracker(AbstractTracker):
    """Run of MLflow, found again by the id of the job when that is resumed."""

    def __init__(self, run: TrackedRun) -> None:
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{run.job_id}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            made = self._client.create_run(experiment_id, run_name=run.out.absolute().name, tags={JOB_TAG: run.job_id})
            self._run_id = made.info.run_id
            params = [Param(key, _text(value)) for key, value in run.settings.items()]
            self._client.log_batch(self._run_id, params=params, tags=[RunTag("longmem.command", run.job)])
        self.place = f"{mlflow.get_tracking_uri()} (experiment {name}, run {self._run_id})"

    def begin(self, first_step: int) -> None:
        # a run of MLflow only grows: steps after a checkpoint that are repeated are there twice
        pass

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        now_ms = int(time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, value, now_ms, step) for name, value in figures.items()])

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run_id, STATUS[outcome])


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= PARAM_CHARACTERS else f"{text[: PARAM_CHARACTERS - 1]}…"
