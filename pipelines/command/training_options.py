# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that train: their documents, device and intervals."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from longmem.errors import ConfigError
from pipelines.command.command_line import check_inputs, local_inputs
from pipelines.command.dataset_options import DATASET, OF_DATASET, ONLY_WITH_DATASET, DatasetOptions
from pipelines.command.fields import HelpPanel, refuse_given, text_field, whole_field
from pipelines.command.summary_option import SummaryOption

if TYPE_CHECKING:
    # loads pyarrow
    from longmem.text.documents import DocumentInput


@dataclass(frozen=True, kw_only=True)
class TrainingDataOptions(DatasetOptions, SummaryOption):
    """Documents of a job that trains."""

    # not below those of a dataset: the heading of options without one
    PANEL: ClassVar[HelpPanel] = HelpPanel("Options")

    data: list[str] | None = text_field(
        None, "Documents to learn from: files and folders as in perplexity; or give --dataset.", shown=False
    )
    valid: list[str] | None = text_field(None, "Documents to judge by.", shown="none")
    split: str | None = text_field(
        None, "Split of the dataset to learn from.", DATASET, OF_DATASET, shown="its only one"
    )
    valid_split: str | None = text_field(
        None, "Split of the dataset to judge by, instead of --valid.", DATASET, OF_DATASET, shown="none"
    )

    def check_data(self) -> None:
        """Raise ConfigError for options that contradict each other, and for files on this machine that do not exist."""
        if (self.dataset is None) == (not self.data):
            raise ConfigError("the documents to learn from are given by --data or by --dataset; give one of them")
        if self.dataset is None:
            refuse_given(self, OF_DATASET, ONLY_WITH_DATASET)
        if self.valid and self.valid_split is not None:
            raise ConfigError("--valid and --valid-split both name the documents to judge by; give one of them")
        check_inputs(*self.data or (), *self.valid or ())

    @property
    def training_data(self) -> "tuple[DocumentInput, ...]":
        dataset = self.dataset_source()
        return local_inputs(self.data or []) if dataset is None else (dataset,)

    @property
    def validation_data(self) -> "tuple[DocumentInput, ...]":
        dataset = self.dataset_source()
        if dataset is None or self.valid_split is None:
            return local_inputs(self.valid or [])
        return (replace(dataset, split=self.valid_split),)


@dataclass(frozen=True, kw_only=True)
class TrainingRunOptions(TrainingDataOptions):
    """Device and intervals of a job that trains step by step."""

    device: str = text_field("cpu", "cpu or cuda.")
    validate_every: int = whole_field(200, "Steps between validations.")
    checkpoint_every: int = whole_field(200, "Steps between checkpoints.")
