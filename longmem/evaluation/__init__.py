# SPDX-License-Identifier: Apache-2.0
"""LongMem in the LM Evaluation Harness (extra `eval`): importing this package registers the model `longmem`.

    import lm_eval
    from lm_eval.tasks import TaskManager
    from longmem.evaluation import local_task

    task = local_task("longmem_perplexity", "books.jsonl")
    lm_eval.simple_evaluate("longmem", tasks=[task], task_manager=TaskManager(include_defaults=False))

A task manager without defaults saves the seconds that the harness spends on indexing its own tasks.
"""

from longmem.evaluation.harness import HarnessModel
from longmem.evaluation.tasks import local_task

__all__ = ["HarnessModel", "local_task"]
