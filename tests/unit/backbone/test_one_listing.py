# SPDX-License-Identifier: Apache-2.0
"""Transformers 5.23 lists its models once in a process that works with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

OPENED = """
import json, sys
from collections import Counter
opened = Counter()
def count(event, arguments):
    if event == "open" and arguments[1] == "r" and "/transformers/models/" in str(arguments[0]):
        opened[arguments[0]] += 1
sys.addaudithook(count)
import longmem.backbone.FIRST
import longmem.model.longmem
from transformers import LlamaForCausalLM
from transformers.models import GPT2LMHeadModel
print(json.dumps(Counter(opened.values())))
"""


@pytest.mark.parametrize("first", ["backbone", "tokenizer"])
def test_files_of_models_are_read_once(first: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", OPENED.replace("FIRST", first)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    files = {int(times): count for times, count in json.loads(ended.stdout).items()}
    assert files[1] > 1000
    # packages that are imported list their own files once more
    assert sum(count for times, count in files.items() if times > 1) < 100
