# SPDX-License-Identifier: Apache-2.0
"""Two data-parallel workers train to the result of one worker with all rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longmem.model.source import ModelSource
from longmem.training.config import TrainingConfig
from longmem.training.worker import TrainingTask, TrainingWorker

pytestmark = pytest.mark.thorough

pytest_plugins = ["tests.ray_cluster"]


@pytest.mark.ray
def test_two_workers_have_the_curve_and_the_weights_of_one(
    tmp_path: Path, small_backbone: Callable[[str], Path], ray_cluster: None
) -> None:
    from actors.training import RayTraining

    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(" ".join(random.choice(["sea", "whale", "ship", "of", "the"], 120)))
    task = TrainingTask(
        model=ModelSource(
            str(small_backbone("llama")), settings={"segment_tokens": 32, "memory_tokens": 96, "top_k": 8}
        ),
        data=(str(tmp_path),),
        validation=(str(tmp_path / "a.txt"),),
        validation_tokens=64,
        config=TrainingConfig(steps=4, rows=4, micro_rows=2, warmup_steps=0),
        threads=1,
    )
    one = TrainingWorker(task, range(4))
    two = RayTraining(task, 2, "auto")
    try:
        for _ in range(4):
            alone, together = one.step(), two.step()
            # sums of equal float32 numbers in another order; four updates amplify the difference
            assert together.loss == pytest.approx(alone.loss, rel=1e-4)
            assert together.gradient_norm == pytest.approx(alone.gradient_norm, rel=1e-2)
        assert two.row_states() == one.row_states()
        judged, expected = two.validate(), one.validate()
        assert judged is not None
        assert expected is not None
        assert judged.with_memory == pytest.approx(expected.with_memory, rel=1e-3)
        # a single worker can resume a checkpoint of two workers
        checkpoint = two.save(tmp_path / "checkpoints", two.row_states())
        assert one.load(checkpoint) == 4
        assert one.step().loss == pytest.approx(two.step().loss, rel=1e-3)
    finally:
        two.close()
