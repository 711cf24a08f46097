# SPDX-License-Identifier: Apache-2.0
"""Options of a command that can read a Hugging Face dataset."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipelines.command.command_line import local_or_hub
from pipelines.command.fields import HelpPanel, OptionMark, refuse_given, text_field

if TYPE_CHECKING:
    # loads pyarrow
    from longmem.text.dataset_rows import DatasetSource

DATASET = HelpPanel("Dataset")
OF_DATASET = OptionMark("It selects a part of the dataset.")
ONLY_WITH_DATASET = "only with --dataset, which names the dataset"


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Dataset to read instead of files."""

    PANEL: ClassVar[HelpPanel] = DATASET

    dataset: str | None = text_field(
        None,
        "Hugging Face dataset instead of files: hub name (user/name, also with @REVISION), folder or file; streamed. "
        "Needs `longmem[datasets]`.",
        shown="none",
    )
    subset: str | None = text_field(None, "Subset (configuration) of the dataset.", OF_DATASET, shown="its default")
    split: str | None = text_field(None, "Split of the dataset.", OF_DATASET, shown="its only one")
    text_column: str = text_field("text", "Column of the texts; one row is one document.", OF_DATASET)
    id_column: str | None = text_field(
        None, "Column that names the documents.", OF_DATASET, shown="id where there is one, else row numbers"
    )

    def dataset_source(self) -> "DatasetSource | None":
        """Return the dataset, if one is given. Raise ConfigError for its other options without it."""
        from longmem.text.dataset_rows import DatasetSource

        if self.dataset is None:
            refuse_given(self, OF_DATASET, ONLY_WITH_DATASET)
            return None
        return DatasetSource(local_or_hub(self.dataset), self.subset, self.split, self.text_column, self.id_column)
