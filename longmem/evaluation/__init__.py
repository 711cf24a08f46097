"""LongMem in the LM Evaluation Harness (extra `eval`): importing this package registers the model `longmem`.

import lm_eval
from longmem.evaluation import local_task, task_manager

task = local_task("longmem_perplexity", "books.jsonl")
lm_eval.simple_evaluate("longmem", tasks=[task], task_manager=task_manager())
"""

from longmem.evaluation.harness import HarnessModel
from longmem.evaluation.tasks import local_task, task_manager

__all__ = ["HarnessModel", "local_task", "task_manager"]
