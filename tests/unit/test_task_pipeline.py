# SPDX-License-Identifier: Apache-2.0
"""`longmem.pipeline`: results of `transformers.pipeline` where there is no memory, and of the model where there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset

import longmem
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.scoring.generate import Sampling
from longmem.store.config import MemoryStore
from tests.texts import prose

PROMPTS = ["The mill stood", "A river"]
BOOK = prose(1, 60)


@pytest.fixture(scope="module")
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model("llama", segment_tokens=64)


def test_generation_without_memory_is_that_of_transformers(
    small_model: Callable[..., LongMem], small_backbone: Callable[[str], Path]
) -> None:
    theirs: Any = transformers.pipeline("text-generation", model=str(small_backbone("llama")))
    # transformers puts no start token in front by itself where the tokenizer does not
    start = theirs.tokenizer.bos_token or theirs.tokenizer.eos_token
    prompts = [start + prompt for prompt in PROMPTS]
    # an untrained SideNet without memory is its backbone; prompt and new text fit into one segment
    ours = longmem.pipeline(
        "text-generation", small_model("llama", unsettled=False, segment_tokens=64, memory_tokens=0)
    )
    for full in (True, False):
        expected = theirs(prompts, max_new_tokens=12, do_sample=False, return_full_text=full)
        assert ours(prompts, max_new_tokens=12, return_full_text=full) == expected
        assert ours(prompts[0], max_new_tokens=12, return_full_text=full) == expected[0]


def test_generation_reads_a_text_as_it_reads_a_stored_document(model: LongMem) -> None:
    generate = longmem.pipeline("text-generation", model)
    with MemoryStore.open("memory://") as store:
        memory = store.document("book")
        model.score(BOOK, memory)
        held = memory.num_tokens
        sampled: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3}
        expected = model.generate(
            PROMPTS[0], memory.as_read_only(), max_new_tokens=12, sampling=Sampling(temperature=0.7, top_p=0.9, seed=3)
        )
        for read in (memory, BOOK):
            assert generate(PROMPTS[0], memory=read, **sampled) == [{"generated_text": PROMPTS[0] + expected}]
        assert memory.num_tokens == held, "a handle that may write is only read"
    assert generate(PROMPTS[0], **sampled) != [{"generated_text": PROMPTS[0] + expected}]


def test_perplexity_of_texts_and_datasets_is_that_of_the_model(model: LongMem) -> None:
    score = longmem.pipeline("perplexity", model)
    texts = [prose(seed, 30) for seed in (2, 3)]
    expected = [model.score(text).perplexity for text in texts]
    rows = Dataset.from_dict({"id": ["a", "b"], "body": texts})
    for found in (score(texts), score(iter(texts)), score(rows, text_column="body"), [score(text) for text in texts]):
        assert [each["perplexity"] for each in found] == expected
    one = score(texts[0], memory=BOOK)
    assert one["perplexity"] != expected[0]
    assert one["change"] == pytest.approx(one["perplexity"] / one["backbone_perplexity"] - 1)
    assert repr(score) == f"TaskPipeline('perplexity', {model!r})"


def test_a_pipeline_opens_a_model_with_settings(small_backbone: Callable[[str], Path]) -> None:
    score = longmem.pipeline("perplexity", small_backbone("gpt2"), segment_tokens=16, search="torch")
    assert (score.model.config.segment_tokens, score.model.search_engine) == (16, "torch")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("translation", {}, "there is no task 'translation'; known are text-generation, perplexity"),
        ("perplexity", {"dtype": "bfloat16"}, "dtype: options of a model that is opened here"),
    ],
)
def test_a_pipeline_that_cannot_be_made_says_why(
    task: str, options: dict[str, Any], message: str, model: LongMem
) -> None:
    with pytest.raises(ConfigError, match=message):
        longmem.pipeline(task, model, **options)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (["text", 3], "got int in the list"),
        ([None, "text"], "got NoneType in the list"),
        ([0], "got int in the list"),
        ({"text": ["the sea"]}, "got dict"),
        (None, "got NoneType"),
    ],
)
def test_anything_but_texts_is_refused(model: LongMem, as_users_run: None, inputs: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        longmem.pipeline("perplexity", model)(inputs)


def test_an_unknown_option_is_refused(model: LongMem, as_users_run: None) -> None:
    with pytest.raises(ConfigError, match="text-generation has no option 'num_beams'"):
        longmem.pipeline("text-generation", model)("text", num_beams=2)
