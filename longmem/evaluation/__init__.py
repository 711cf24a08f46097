"""LongMem in the LM Evaluation Harness (extra `eval`): importing this package registers the model `longmem`.

import lm_eval
from longmem.evaluation import local_task, task_manager

lm_eval.simple_evaluate("longmem", tasks=[local_task("longmem_perplexity", "books.jsonl")], task_manager=task_manager())
"""

from longmem.evaluation.harness import HarnessModel
from longmem.evaluation.tasks import local_task, task_manager

__all__ = ["HarnessModel", "local_task", "task_manager"]
