# SPDX-License-Identifier: Apache-2.0
"""`longmem train` from a user's point of view: curves, checkpoints, a usable model, resume after a kill, invalid
input."""

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longmem import LongMem
from longmem.errors import CheckpointError
from longmem.training.trainer import Trainer
from pipelines.cli import app
from tests.folders import snapshot

pytestmark = pytest.mark.thorough

STEPS = 6


def invoke(*args: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(arg) for arg in args], prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for index, word in enumerate(("whale", "pond", "road")):
        (folder / f"{word}.txt").write_text(f"The {word} was as large as it was old, said chapter {index}. " * 12)
    return folder


@pytest.fixture
def train(books: Path, small_backbone: Callable[[str], Path]) -> Callable[..., tuple[int, str]]:
    """Run `longmem train` on small books with a small backbone."""

    def run(out: Path, *options: object) -> tuple[int, str]:
        small = ("--backbone", small_backbone("llama"), "--segment-tokens", 32, "--memory-tokens", 128, "--top-k", 8)
        size = ("--steps", STEPS, "--rows", 2, "--warmup-steps", 2, "--threads", 1, "--dtype", "float32")
        return invoke("train", "--data", books, "--out", out, *small, *size, *options)

    return run


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_gives_curves_and_a_model_that_scores(
    tmp_path: Path, books: Path, train: Callable[..., tuple[int, str]]
) -> None:
    (books / "notes.pdf").touch()
    rule = ("--special-tokens", "text")
    code, output = train(tmp_path / "out", "--valid", books / "pond.txt", "--validate-every", 3, *rule)
    assert code == 0, output
    assert "not read: 1 .pdf (notes.pdf)" in output
    out = tmp_path / "out"
    assert column(out / "curve.csv", "step") == list(range(1, STEPS + 1))
    assert column(out / "validation.csv", "step") == [0, 3, 6]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = LongMem.from_pretrained(out / "model")
    assert model.config.trained_steps == STEPS
    assert model.score("The whale was as old as the pond. " * 9).perplexity > 1
    assert model.config.special_tokens == "text"
    summary = json.loads((out / "training.json").read_text())
    assert summary["training"]["steps"] == STEPS
    assert summary["left_out"][".pdf"] == {"count": 1, "examples": ["notes.pdf"]}


def test_an_interrupted_run_resumes_to_the_same_curve(tmp_path: Path, train: Callable[..., tuple[int, str]]) -> None:
    assert train(tmp_path / "whole", "--checkpoint-every", 2)[0] == 0
    assert train(tmp_path / "killed", "--checkpoint-every", 2)[0] == 0
    killed = tmp_path / "killed"
    # the state after a kill during step 6: the checkpoint of step 4, and steps 5 and half of 6 in the curve
    (killed / "training.json").unlink()
    for path in (killed / "checkpoints" / "step-00000006").iterdir():
        path.unlink()
    lines = (killed / "curve.csv").read_text().splitlines()
    (killed / "curve.csv").write_text("\n".join(lines[:-1]) + "\n6,6")
    code, output = train(killed, "--checkpoint-every", 2, "--resume")
    assert code == 0, output
    assert "steps 4 to 6" in output
    assert column(killed / "curve.csv", "step") == list(range(1, STEPS + 1))
    before = snapshot(killed)
    code, output = train(killed, "--checkpoint-every", 2, "--resume")
    assert (code, output.count("finished before")) == (0, 1), output
    assert snapshot(killed) == before
    losses = [column(folder / "curve.csv", "loss") for folder in (tmp_path / "whole", killed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_ctrl_c_waits_for_the_step_and_leaves_a_checkpoint(
    tmp_path: Path, train: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "whole")[0] == 0
    step = Trainer.step

    def interrupted(trainer: Trainer) -> object:
        if trainer.step_count == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    out = tmp_path / "interrupted"
    code, output = train(out)
    assert code == 130
    assert "longmem resume" in output
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(Trainer, "step", step)
    assert train(out, "--resume")[0] == 0
    expected = column(tmp_path / "whole" / "curve.csv", "loss")
    assert column(out / "curve.csv", "loss") == pytest.approx(expected, rel=1e-4)


def test_bfloat16_trains_resumes_and_its_model_is_checked_when_opened(
    tmp_path: Path, train: Callable[..., tuple[int, str]]
) -> None:
    """Check the default dtype: the saved model opens in float32 and bfloat16, and a flipped bit is detected in both."""
    options = ("--dtype", "bfloat16", "--checkpoint-every", 2)
    assert train(tmp_path / "whole", *options)[0] == 0
    out = tmp_path / "killed"
    assert train(out, *options)[0] == 0
    (out / "training.json").unlink()
    for path in (out / "checkpoints" / "step-00000006").iterdir():
        path.unlink()
    assert train(out, *options, "--resume")[0] == 0
    expected = column(tmp_path / "whole" / "curve.csv", "loss")
    # bfloat16 has three decimal digits
    assert column(out / "curve.csv", "loss") == pytest.approx(expected, rel=1e-2)

    folder = out / "model"
    for dtype in ("float32", "bfloat16"):
        assert LongMem.from_pretrained(folder, dtype=dtype).config.trained_steps == STEPS
    weights = bytearray((folder / "sidenet.safetensors").read_bytes())
    weights[-7] ^= 1
    (folder / "sidenet.safetensors").write_bytes(weights)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(CheckpointError, match="is not what was saved"):
            LongMem.from_pretrained(folder, dtype=dtype)


def test_a_run_killed_before_its_first_checkpoint_begins_its_curves_again(
    tmp_path: Path, books: Path, train: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def killed(trainer: Trainer) -> object:
        if trainer.step_count == 2:
            raise RuntimeError("killed")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "out", "--valid", books / "pond.txt")
    monkeypatch.setattr(Trainer, "step", step)
    assert train(tmp_path / "out", "--valid", books / "pond.txt", "--resume")[0] == 0
    assert column(tmp_path / "out" / "validation.csv", "step") == [0, STEPS]
    assert column(tmp_path / "out" / "curve.csv", "step") == list(range(1, STEPS + 1))


def test_a_longmem_folder_learns_on(tmp_path: Path, books: Path, train: Callable[..., tuple[int, str]]) -> None:
    assert train(tmp_path / "first")[0] == 0
    code, output = invoke(
        *("train", "--data", books, "--out", tmp_path / "second", "--backbone", tmp_path / "first" / "model"),
        *("--steps", 2, "--rows", 1, "--threads", 1, "--dtype", "float32"),
    )
    assert code == 0, output
    assert LongMem.from_pretrained(tmp_path / "second" / "model").config.trained_steps == STEPS + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", 0), "--rows must be at least 1, got 0"),
        (("--learning-rate", -1), "--learning-rate must be greater than 0, got -1"),
        (("--no-memory",), "contradict each other"),
        (("--set", "keys=odd"), "keys must be one of raw, centred, unit"),
        (("--set", "colour=blue"), "unknown settings"),
        (("--set", "keys"), "--set needs NAME=VALUE"),
        (("--memory-layer", 2), "memory_layer must be one of"),
        (("--workers", 2), "needs Ray"),
        (("--device", "tpu"), "--device must be cpu or cuda"),
        (("--valid", "absent.txt"), "absent.txt"),
        (("--segment-tokens", 4096), "segment_tokens must be at most"),
    ],
)
def test_bad_options_are_refused_before_anything_is_learned(
    tmp_path: Path,
    train: Callable[..., tuple[int, str]],
    options: tuple[object, ...],
    message: str,
    as_users_run: None,
) -> None:
    code, output = train(tmp_path / "out", *options)
    assert code == 2
    assert message in " ".join(output.split())
    assert not (tmp_path / "out" / "model").exists()


def test_bad_data_is_refused(tmp_path: Path, books: Path, train: Callable[..., tuple[int, str]]) -> None:
    (books / "broken.txt").write_bytes(b"\xff\xfe\x00")
    code, output = train(tmp_path / "out")
    assert code == 2
    assert "broken.txt" in output
    (books / "broken.txt").unlink()
    for path in books.iterdir():
        path.write_text("short")
    code, output = train(tmp_path / "other")
    assert code == 2
    assert "no training document has 33 tokens" in " ".join(output.split())


def test_another_job_s_folder_is_refused(tmp_path: Path, train: Callable[..., tuple[int, str]]) -> None:
    assert train(tmp_path / "out")[0] == 0
    assert "holds another job" in train(tmp_path / "out")[1]
    code, output = train(tmp_path / "out", "--resume", "--seed", 7)
    assert code == 2
    assert "training" in output
