# SPDX-License-Identifier: Apache-2.0
"""`longmem pretrain` on a tiny preset: it learns, survives every kind of interruption, and saves a usable backbone."""

import csv
import json
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from longmem.backbone.new import LlamaShape
from longmem.model.longmem import LongMem
from longmem.pretraining.config import PretrainingConfig
from longmem.pretraining.presets import PRESETS, Preset
from longmem.pretraining.pretrainer import Pretrainer
from pipelines.cli import app
from tests.folders import snapshot
from tests.texts import prose

pytestmark = pytest.mark.thorough

STEPS = 30
TINY = Preset(
    shape=LlamaShape(
        layers=4, hidden_size=32, heads=2, head_dim=16, intermediate_size=48, vocab_size=300, max_positions=64
    ),
    config=PretrainingConfig(
        window_tokens=32, batch_tokens=256, micro_rows=4, learning_rate=1e-2, warmup_steps=3, steps=STEPS
    ),
)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for name, seed, words in (("train/a", 0, 500), ("train/b", 1, 700), ("valid/c", 2, 400)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text(prose(seed, words), encoding="utf-8")
    (folder / "train" / "notes.pdf").touch()
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """Register `--size tiny` for these tests; restore signal handlers and threads after them."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    PRESETS["tiny"] = TINY
    yield
    del PRESETS["tiny"]
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


def pretrain(books: Path, out: Path, *options: str, data: str = "train") -> tuple[int, str, str]:
    """Run the command and return exit code, stdout, stderr."""
    parts = ["pretrain", "--data", str(books / data), "--valid", str(books / "valid"), "--out", str(out)]
    parts += ["--size", "tiny", "--threads", "1", "--dtype", "float32", "--validate-every", "10"]
    runner = CliRunner(env={"COLUMNS": "140", "RAYON_NUM_THREADS": "1"})
    result = runner.invoke(app, [*parts, "--checkpoint-every", "8", *options], prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def finished(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    code, stdout, stderr = pretrain(books, out)
    assert code == 0, stderr
    assert stdout == f"trained backbone: {out / 'model'}\n"
    assert "not read: 1 .pdf (notes.pdf)" in stderr
    assert json.loads((out / "training.json").read_text())["left_out"] == {
        ".pdf": {"count": 1, "examples": ["notes.pdf"]}
    }
    return out


def curve(out: Path, name: str = "curve.csv") -> list[dict[str, float]]:
    """Return all written values of a run except its duration."""
    with (out / name).open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_it_learns(finished: Path) -> None:
    rows = curve(finished)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["loss"] == pytest.approx(math.log(300), rel=0.05), "a new model knows nothing"
    assert sum(row["loss"] for row in rows[-5:]) / 5 < rows[0]["loss"] - 1
    validations = curve(finished, "validation.csv")
    assert [row["step"] for row in validations] == [0, 10, 20, 30]
    assert validations[-1]["text"] < validations[0]["text"] / 2
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((finished / "training.json").read_text())
    assert summary["validation"] == validations
    assert summary["training"]["steps"] == STEPS
    assert summary["corpus"]["documents"] == 2


def test_the_saved_backbone_opens_and_scores(finished: Path, books: Path) -> None:
    folder = finished / "model"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    model = LongMem.from_backbone(folder, segment_tokens=32, memory_tokens=96, top_k=16)
    text = (books / "valid" / "c.txt").read_text(encoding="utf-8")
    assert model.tokenizer.decode(model.tokenizer.sequence(text).tolist()) == text
    scores = model.score(text[:600])
    # another cut of other tokens of this text, weights in bfloat16
    assert scores.backbone_perplexity == pytest.approx(curve(finished, "validation.csv")[-1]["text"], rel=0.2)


def test_a_sidenet_trains_on_the_saved_backbone(finished: Path, books: Path, tmp_path: Path) -> None:
    """Train a SideNet on the saved backbone and resume it. Both kinds of training share the checkpoint code."""
    parts = ["train", "--data", str(books / "train"), "--valid", str(books / "valid"), "--valid-tokens", "100"]
    parts += ["--backbone", str(finished / "model"), "--segment-tokens", "32", "--memory-tokens", "64", "--top-k", "8"]
    parts += ["--rows", "2", "--steps", "3", "--threads", "1", "--dtype", "float32", "--checkpoint-every", "2"]
    parts += ["--validate-every", "2", "--out", str(tmp_path / "out")]
    runner = CliRunner(env={"COLUMNS": "140"})
    assert runner.invoke(app, parts).exit_code == 0
    whole = curve(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000003")
    shutil.rmtree(tmp_path / "out" / "model")
    # written last: a job without it has not finished
    (tmp_path / "out" / "training.json").unlink()
    result = runner.invoke(app, [*parts, "--resume"])
    assert result.exit_code == 0
    assert "steps 2 to 3" in result.stderr
    for row, other in zip(curve(tmp_path / "out"), whole, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert list(curve(tmp_path / "out", "validation.csv")[0]) == ["step", "with_memory", "without_memory", "backbone"]
    LongMem.from_pretrained(tmp_path / "out" / "model")


def test_a_run_in_pieces_is_the_same_run(
    finished: Path, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # so short that each slice has the minimum length
    slice_of = ("--resume", "--max-minutes", "1e-9")
    for made in ("tokenizer", "corpus", "checkpoints/step-00000001", "checkpoints/step-00000002"):
        code, stdout, stderr = pretrain(books, out, *slice_of)
        assert (code, stdout) == (0, "")
        *_, advice, seconds = stderr.splitlines()
        assert advice.endswith(f"slice over. Continue with: longmem resume {out}")
        assert "start-up included" in seconds
        assert (out / made).is_dir(), f"a slice did not get to {made}"
    assert not (out / "model").exists()

    step = Pretrainer.step

    def crash(trainer: Pretrainer) -> object:
        if trainer.step_count == 19:
            raise RuntimeError("killed")
        return step(trainer)

    monkeypatch.setattr(Pretrainer, "step", crash)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(books, out, "--resume")
    assert curve(out)[-1]["step"] == 19

    def interrupt(trainer: Pretrainer) -> object:
        if trainer.step_count == 21:
            signal.raise_signal(signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(Pretrainer, "step", interrupt)
    code, _, stderr = pretrain(books, out, "--resume")
    assert code == 130
    assert "steps 16 to 30" in stderr
    assert "longmem resume" in stderr
    assert (out / "checkpoints" / "step-00000022").is_dir()

    monkeypatch.setattr(Pretrainer, "step", step)
    # the number of windows per forward may change between runs
    code, _, stderr = pretrain(books, out, "--resume", "--micro-rows", "8")
    assert code == 0
    assert "steps 22 to 30" in stderr
    assert_same(curve(out), curve(finished))
    assert_same(curve(out, "validation.csv"), curve(finished, "validation.csv"))


def assert_same(rows: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    """Compare up to the summation order of float32 gradients of a step's windows, over eight steps."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def test_a_finished_job_can_be_resumed(finished: Path, books: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "job.lock").unlink()
    assert pretrain(books, out, "--resume")[0] == 0
    before = snapshot(out)
    code, stdout, _ = pretrain(books, out, "--resume")
    assert (code, stdout) == (0, f"{out}: the job has finished before; nothing was changed\n")
    assert snapshot(out) == before
    assert (out / "model/model.safetensors").read_bytes() == (finished / "model/model.safetensors").read_bytes()
    assert curve(out) == curve(finished)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "7b"], "size must be one of 8m, 100m, tiny, got '7b'"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--batch-tokens", "100"], "batch_tokens must be a multiple of the window's 32 tokens, got 100"),
        (["--max-minutes", "0"], "--max-minutes must be greater than 0, got 0"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--valid", "nowhere.txt"], "input not found: nowhere.txt"),
        (["--data", "nowhere"], "input not found: nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    books: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, stderr = pretrain(books, tmp_path / "out", *options)
    assert code == 2
    assert message in stderr
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_refused(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, stderr = pretrain(books, tmp_path / "out", "--device", "cuda")
    assert code == 2
    assert "torch sees no GPU here" in stderr


def test_too_little_data_is_refused(books: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("few words\n")
    code, _, stderr = pretrain(tmp_path, tmp_path / "out", "--valid", str(tmp_path / "few.txt"), data="few.txt")
    assert code == 2
    assert "input not found" in stderr, "this folder has no valid/"
    code, _, stderr = pretrain(books, tmp_path / "out", data=str(tmp_path / "few.txt"))
    assert code == 2
    assert "entries, the model needs 300: give more text" in stderr


def test_an_output_folder_of_something_else_is_refused(finished: Path, books: Path, tmp_path: Path) -> None:
    code, _, stderr = pretrain(books, finished)
    assert code == 2
    assert "holds another job" in stderr
    code, _, stderr = pretrain(books, finished, "--resume", "--seed", "1")
    assert code == 2
    assert "holds another job (its job.json != this command): training:" in stderr
    (tmp_path / "notes.txt").write_text("mine")
    code, _, stderr = pretrain(books, tmp_path, "--resume")
    assert code == 2
    assert "cannot resume" in stderr
