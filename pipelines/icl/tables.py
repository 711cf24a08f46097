# SPDX-License-Identifier: Apache-2.0
"""Arrow tables of answers and grid points: columns and types of the parquet files."""

from typing import Any

import pyarrow as pa

from pipelines.icl.calibration import PARTS
from pipelines.icl.mixture import VOTE_POWER

ITEM_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("seed", pa.int64()),
        ("shots", pa.int64()),
        ("memory_shots", pa.int64()),
        ("item", pa.string()),
        ("shots_in_context", pa.int64()),
        ("num_tokens", pa.int64()),
        ("gold", pa.string()),
        ("longmem", pa.string()),
        ("longmem_greedy", pa.string()),
        ("backbone", pa.string()),
        ("backbone_greedy", pa.string()),
        ("longmem_logprobs", pa.list_(pa.float64())),
        ("backbone_logprobs", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("exact_match", pa.float64()),
        ("f1", pa.float64()),
    ]
)
"""Columns of items.parquet.

Labels are predicted by mean log-probability of a label's tokens (`longmem`), and by greedy first token
(`longmem_greedy`; null if the most probable token begins no label). Log-probabilities are in the order of the task's
labels. The last three columns describe generated answers.
"""

WHOLE_SCHEMA = pa.schema(
    [
        *ITEM_SCHEMA,
        *((f"{model}_calibrated", pa.string()) for model in PARTS),
        ("demonstrations_read", pa.list_(pa.int64())),
        *((f"{by}_votes", pa.list_(pa.float64())) for by in VOTE_POWER),
        ("regression", pa.list_(pa.float64())),
    ]
)
"""Columns of items.parquet where whole demonstrations were read. Calibrated labels (`pipelines.icl.calibration`) are
null without memory. Demonstrations are named by their index in memory, the nearest last; votes are label shares of the
nearest ones."""

GRID_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("shots", pa.int64()),
        ("memory_shots", pa.int64()),
        ("model", pa.string()),
        ("scoring", pa.string()),
        ("metric", pa.string()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("seeds", pa.int64()),
        ("items", pa.int64()),
        ("shots_in_context", pa.float64()),
        ("tokens_per_item", pa.float64()),
        ("bias", pa.float64()),
    ]
)
"""Columns of grid.parquet. `std` is the sample standard deviation over seeds (null for one seed), `low` and `high` the
95% interval of the mean over seeds and items (null for macro-F1), `bias` the distance between the distributions of
predictions and golds."""


def item_table(rows: list[dict[str, Any]], whole: bool) -> pa.Table:
    """Return the content of items.parquet; `whole` where whole demonstrations were read."""
    return pa.Table.from_pylist(rows, schema=WHOLE_SCHEMA if whole else ITEM_SCHEMA)


def grid_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the content of grid.parquet."""
    return pa.Table.from_pylist(rows, schema=GRID_SCHEMA)
