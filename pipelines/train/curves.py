# SPDX-License-Identifier: Apache-2.0
"""Training curves: two append-only CSV files and their plot."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from longmem.training.trainer import StepResult
from pipelines.job.output import GrowingFile, write_bytes, write_text
from pipelines.tracking.tracker import NO_TRACKING, Tracking

STEP_COLUMNS = ("step", "tokens", "loss", "learning_rate", "gradient_norm", "seconds")
SMOOTHING_STEPS = 25


@dataclass(frozen=True)
class CurveFiles:
    """Writer of `curve.csv`, `validation.csv` and `curves.png` in one output folder."""

    folder: Path
    labels: Mapping[str, str]
    """Labels in the plot by column of `validation.csv`."""
    tracking: Tracking = NO_TRACKING
    """Experiment tracker that gets the same figures."""

    def begin(self, from_step: int) -> None:
        """Discard rows after `from_step` (0: all rows), so that a resumed run's curve has each step once."""
        for name, columns in (("curve.csv", STEP_COLUMNS), ("validation.csv", ("step", *self.labels))):
            rows = [row for row in self._read(name) if from_step and int(row["step"]) <= from_step]
            text = io.StringIO()
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(rows)
            write_text(self.folder / name, text.getvalue())
        self.tracking.begin(from_step)

    def add_step(self, result: StepResult, seconds: float) -> None:
        values = (
            result.step,
            result.tokens,
            f"{result.loss:.6f}",
            f"{result.learning_rate:.6g}",
            f"{result.gradient_norm:.5g}",
            f"{seconds:.3f}",
        )
        self._add("curve.csv", values)
        figures = {
            "train/loss": result.loss,
            "train/learning_rate": result.learning_rate,
            "train/gradient_norm": result.gradient_norm,
            "train/tokens_per_s": result.tokens / seconds,
        }
        self.tracking.add(result.step, figures)

    def add_validation(self, step: int, perplexities: Mapping[str, float]) -> None:
        """Append one perplexity per label."""
        self._add("validation.csv", (step, *(f"{perplexities[name]:.6g}" for name in self.labels)))
        self.tracking.add(step, {f"valid/perplexity_{name}": perplexities[name] for name in self.labels})

    def draw(self) -> None:
        """Write `curves.png`: training loss and validation perplexities."""
        # only now: matplotlib takes a tenth of what a job imports
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        steps, validations = self._read("curve.csv"), self._read("validation.csv")
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        losses = [float(row["loss"]) for row in steps]
        left.plot([int(row["step"]) for row in steps], _smoothed(losses), color="#1f77b4")
        left.set(xlabel="step", ylabel="nats per token", title=f"Training loss (mean of {SMOOTHING_STEPS} steps)")
        for name, label in self.labels.items():
            right.plot(
                [int(row["step"]) for row in validations], [float(row[name]) for row in validations], label=label
            )
        right.set(xlabel="step", ylabel="perplexity per token", title="Validation")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.grid(alpha=0.3)
        FigureCanvasAgg(figure)
        picture = io.BytesIO()
        figure.savefig(picture)
        write_bytes(self.folder / "curves.png", picture.getvalue())

    def validations(self) -> list[dict[str, float]]:
        """Return all rows of `validation.csv`."""
        return [{name: float(value) for name, value in row.items()} for row in self._read("validation.csv")]

    def _read(self, name: str) -> list[dict[str, str]]:
        path = self.folder / name
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            # a line torn by a kill lacks columns; its step is repeated
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def _add(self, name: str, values: Iterable[object]) -> None:
        file = GrowingFile(self.folder / name)
        try:
            file.add((",".join(map(str, values)) + "\n").encode())
        finally:
            file.close()


def _smoothed(values: list[float]) -> list[float]:
    return [
        sum(values[max(0, end - SMOOTHING_STEPS) : end]) / min(end, SMOOTHING_STEPS)
        for end in range(1, len(values) + 1)
    ]
