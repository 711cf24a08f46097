# SPDX-License-Identifier: Apache-2.0
"""Upload of a LongMem to the Hugging Face hub, with a model card; `LongMem.from_pretrained` opens it by its hub id."""

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from longmem.backbone.files import one_line
from longmem.errors import CheckpointError
from longmem.model.checkpoint import SIDENET_FILE, save_parts
from longmem.model.folders import BACKBONE_FOLDER
from longmem.model.forward import SegmentModel
from longmem.version import __version__

CARD_FILE = "README.md"

CARD = """{front}

# {title}

A [LongMem]({project}): the frozen language model **{backbone}** with a memory of {memory_tokens:,} earlier tokens.
{reading}

```python
from longmem import LongMem, MemoryStore

model = LongMem.from_pretrained("{repo_id}")
with MemoryStore.open("memory.lance") as store:
    print(model.score(text, memory=store.document("my-book")))
```

On the command line: `longmem perplexity book.txt --model {repo_id}`.

| setting | value |
|---|---|
{settings}

Written by longmem {version}. The folder `backbone/` is an ordinary Hugging Face model. Its licence and limits are those
of {backbone}.
"""
PROJECT = "https://arxiv.org/abs/2306.07174"


def push_to_hub(model: SegmentModel, repo_id: str, private: bool | None, token: str | None, message: str) -> str:
    """Create the repository if there is none, upload the model in one commit, and return its URL.

    A model card is added unless the repository has one. Files of an earlier model that the new one lacks are deleted.
    Raises CheckpointError if the hub refuses or cannot be reached.
    """
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory(prefix="longmem-hub-") as scratch:
            folder = Path(scratch)
            save_parts(folder, model.backbone, model.sidenet, model.tokenizer, model.config)
            if not api.file_exists(url.repo_id, CARD_FILE):
                (folder / CARD_FILE).write_text(model_card(model, url.repo_id), encoding="utf-8")
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                commit_message=message,
                delete_patterns=[f"{BACKBONE_FOLDER}/*", SIDENET_FILE],
            )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"cannot upload to {repo_id}: {one_line(error)}; the name must be USER/NAME, with a token that may write "
            "(`hf auth login`, HF_TOKEN or token=)"
        ) from error
    return str(url)


def model_card(model: SegmentModel, repo_id: str) -> str:
    """Return the text of a model card: how the model reads its memory, how to open it, and its settings."""
    config = model.config
    if config.reads_all_layers:
        reading = "Every layer of it reads the memory. No weight of it is changed."
    else:
        reading = (
            f"A SideNet reads the keys and values of layer {model.sidenet.memory_layer}; it was trained for "
            f"{config.trained_steps:,} steps."
        )
    front = ModelCardData(
        library_name="longmem",
        pipeline_tag="text-generation",
        tags=["longmem", "long-context", "retrieval", "memory", str(model.backbone.model.config.model_type)],
    )
    card = CARD.format(
        front=f"---\n{front.to_yaml()}\n---",
        title=repo_id.rpartition("/")[2],
        project=PROJECT,
        backbone=model.backbone.name,
        memory_tokens=config.memory_tokens,
        reading=reading,
        repo_id=repo_id,
        settings="\n".join(f"| `{name}` | {value} |" for name, value in vars(config).items()),
        version=__version__,
    )
    return str(ModelCard(card))
