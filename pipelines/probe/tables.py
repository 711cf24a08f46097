# SPDX-License-Identifier: Apache-2.0
"""Arrow tables of questions: trials.parquet, and what the right answers read: readings.parquet."""

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from longmem.synthetic.trial import Trial

TRIAL_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("memory_tokens", pa.int64()),
        ("examples", pa.int64()),
        ("depth", pa.float64()),
        ("shots", pa.int64()),
        ("choices", pa.int64()),
        ("greedy", pa.bool_()),
        ("chosen", pa.bool_()),
        ("read", pa.bool_()),
        ("nats", pa.float64()),
        ("greedy_without", pa.bool_()),
        ("chosen_without", pa.bool_()),
        ("nats_without", pa.float64()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("longmem", pa.string()),
        ("backbone", pa.string()),
        ("greedy_answer", pa.string()),
        ("greedy_answer_without", pa.string()),
    ]
)
"""Columns of trials.parquet, explained at `longmem.synthetic.trial.Trial`: a row for each question."""

SHOWN = [("position", pa.int64()), ("passage", pa.string()), ("start", pa.int64()), ("length", pa.int64())]
PLACE = pa.struct([*SHOWN, ("weight", pa.float64()), ("run", pa.int64()), ("same", pa.bool_())])
TOKEN = pa.struct(
    [
        ("passage", pa.string()),
        ("logprob", pa.float64()),
        ("logprob_without", pa.float64()),
        ("uncopied", pa.float64()),
        ("copy_share", pa.float64()),
        ("copied", pa.float64()),
        ("right", pa.int64()),
        ("read", pa.bool_()),
        ("places", pa.list_(PLACE)),
    ]
)
READING_SCHEMA = pa.schema(
    [
        ("answers", pa.list_(pa.string())),
        ("nats", pa.list_(pa.float64())),
        ("nats_without", pa.list_(pa.float64())),
        ("asked", pa.int64()),
        ("place", pa.struct(SHOWN)),
        ("blocks", pa.list_(pa.list_(pa.int64()))),
        ("tokens", pa.list_(TOKEN)),
    ]
)
"""Columns of readings.parquet, explained at `longmem.synthetic.answer_readings.AnswerReadings`. Its rows are those of
trials.parquet."""

GROUP_ROWS = 64
"""Rows of a row group of readings.parquet, as many as are read at once: about 300 kB."""


def trials_table(trials: Sequence[Trial]) -> pa.Table:
    """Return the content of trials.parquet."""
    return pa.Table.from_pylist([vars(trial) for trial in trials], schema=TRIAL_SCHEMA)


def readings_table(trials: Sequence[Trial]) -> pa.Table:
    """Return the content of readings.parquet; every trial has kept its readings."""
    rows = []
    for trial in trials:
        assert trial.readings is not None, "readings were not kept"
        rows.append(asdict(trial.readings))
    return pa.Table.from_pylist(rows, schema=READING_SCHEMA)
