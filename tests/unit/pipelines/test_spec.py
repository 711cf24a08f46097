# SPDX-License-Identifier: Apache-2.0
"""A command from a dataclass: adding an option takes one field and the code that reads it."""

from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import ClassVar, Literal, get_args

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from actors.config import ClusterShape
from longmem.config import LongMemConfig
from longmem.errors import ConfigError
from longmem.retrieval import SEARCH_ENGINES
from longmem.synthetic.passkey import KeyKind
from pipelines.command.choices import SearchEngine
from pipelines.command.command_line import LongMemGroup
from pipelines.command.fields import (
    DECIDED_BY_SERVICE,
    MODEL_SETTING,
    REQUIRED,
    HelpPanel,
    OptionMark,
    choice_field,
    flag_field,
    from_options,
    marked_fields,
    refuse_given,
    text_argument_field,
    text_field,
    whole_field,
)
from pipelines.command.options import ClusterOptions, OptionalMemoryOptions
from pipelines.command.spec import CommandSpec, command
from pipelines.fit.spec import FitSpec
from pipelines.icl.spec import IclSpec
from pipelines.perplexity.spec import PerplexitySpec
from pipelines.plan.spec import PlanSpec
from pipelines.pretrain.spec import OF_THE_PRESET, PretrainSpec
from pipelines.probe.spec import ProbeSpec
from pipelines.suffix.spec import SuffixSpec
from pipelines.train.spec import TrainSpec

LOUD = OptionMark("An option that a quiet command refuses.")
RAN: list["CountSpec"] = []


@dataclass(frozen=True, kw_only=True)
class TinyGroup:
    """A group of one option."""

    PANEL: ClassVar[HelpPanel] = HelpPanel("Voice")

    volume: int = whole_field(3, "Loudness.", LOUD, most=11)


@dataclass(frozen=True, kw_only=True)
class CountSpec(TinyGroup, CommandSpec):
    """Count the words of texts.

    **Example:** `count moby-dick`
    """

    texts: list[str] | None = text_argument_field(None, "Names of texts.", "TEXT")
    limit_words: int | None = whole_field(None, "Words to count.", names=("--limit-words", "--limit"), shown="all")
    unit: Literal["word", "line"] = choice_field("word", "Thing to count.")
    title: str = text_field(REQUIRED, "Heading.")
    quiet: bool = flag_field("Print nothing.")

    def run(self, console: Console) -> int | None:
        if self.quiet:
            refuse_given(self, LOUD, "this is quiet")
        RAN.append(self)
        return 1 if self.limit_words == 7 else None


def count(*arguments: str) -> Result:
    RAN.clear()
    app = typer.Typer(cls=LongMemGroup, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    app.command()(command(CountSpec))
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["count", *arguments])


def test_options_and_arguments_become_fields() -> None:
    result = count("a", "b", "--limit-words", "5", "--unit", "line", "--title", "T", "--volume", "11")
    assert (result.exit_code, result.output) == (0, "")
    [spec] = RAN
    assert spec == CountSpec(
        given=frozenset({"texts", "limit_words", "unit", "title", "volume"}),
        texts=["a", "b"],
        limit_words=5,
        unit="line",
        title="T",
        volume=11,
    )


def test_options_left_out_take_their_defaults_and_are_not_given() -> None:
    assert count("--title", "T").exit_code == 0
    [spec] = RAN
    assert spec == CountSpec(given=frozenset({"title"}), title="T")
    assert (spec.texts, spec.limit_words, spec.unit, spec.volume, spec.quiet) == (None, None, "word", 3, False)


def test_an_option_given_with_the_value_of_its_default_counts_as_given() -> None:
    assert count("--title", "T", "--volume", "3").exit_code == 0
    assert RAN[0].given == {"title", "volume"}


def test_an_alias_sets_the_same_field() -> None:
    assert count("--title", "T", "--limit", "5").exit_code == 0
    assert RAN[0].limit_words == 5


@dataclass(frozen=True, kw_only=True)
class JobSpec(CommandSpec):
    """Do nothing, in a folder."""

    @property
    def resumable_folder(self) -> Path:
        return Path("out")

    def run(self, console: Console) -> None:
        pass


def test_the_time_of_a_job_begins_with_its_process() -> None:
    app = typer.Typer(cls=LongMemGroup)
    app.callback()(lambda: None)
    app.command()(command(JobSpec))
    runner = CliRunner(env={"COLUMNS": "100"})
    assert runner.invoke(app, ["job"]).stderr == "the command took 0.0 s, start-up included\n"
    assert "took 3,600." in runner.invoke(app, ["job"], obj=monotonic() - 3600.0).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--volume", "12"], "error: --volume must be at most 11, got 12\n"),
        (["--limit", "x"], "error: --limit-words must be a whole number, got 'x'\n"),
        ([""], "error: TEXT must not be empty: give a value, or leave it out\n"),
        (["--title", ""], "error: --title must not be empty: give a value\n"),
        (["--quiet", "--volume", "3"], "error: --volume: this is quiet\n"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = count("--title", "T", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)
    assert RAN == []


@pytest.mark.parametrize("arguments", [[], ["--title", "T", "--unit", "page"], ["--title", "T", "--word"]])
def test_a_missing_option_an_unknown_choice_and_an_unknown_option_are_usage_errors(arguments: list[str]) -> None:
    assert count(*arguments).exit_code == 2
    assert RAN == []


def test_the_number_that_run_returns_is_the_exit_code() -> None:
    assert count("--title", "T", "--limit-words", "7").exit_code == 1


def test_help_shows_the_docstring_and_every_option_under_its_heading() -> None:
    shown = count("--help").output
    assert "Count the words of texts." in shown
    assert "--limit-words,--limit" in shown
    assert "<word|line>" in shown
    assert "[default: (all)]" in shown
    own, voice = shown.split("Voice")
    assert "--title" in own
    assert "--volume" in voice
    assert "[default: 3]" in voice
    assert "given" not in shown


def test_a_new_option_is_one_field() -> None:
    """The addition of a field is all that a command needs to take another option."""

    @dataclass(frozen=True, kw_only=True)
    class MoreSpec(CountSpec):
        """Count more."""

        language: str = text_field("en", "Language of the texts.")

    app = typer.Typer(cls=LongMemGroup)
    app.callback()(lambda: None)
    app.command()(command(MoreSpec))
    RAN.clear()
    assert CliRunner().invoke(app, ["more", "--title", "T", "--language", "de"]).exit_code == 0
    [spec] = RAN
    assert isinstance(spec, MoreSpec)
    assert spec.language == "de"
    assert "language" in spec.given


def test_a_field_without_a_kind_of_option_is_an_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class BareSpec(CommandSpec):
        """A field that Typer would take as it is."""

        share: float = 1.0

    with pytest.raises(TypeError, match="share must be made by a function of"):
        command(BareSpec)


def test_a_dataclass_is_filled_from_options_of_the_same_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Target:
        title: str
        volume: int = 0
        limit_words: int = 0
        pages: int = 1

    made = from_options(Target, CountSpec(title="T", limit_words=5), limit_words=6)
    assert made == Target(title="T", volume=3, limit_words=6)


# --- the specs of the jobs ----------------------------------------------------------------------------------------

SPECS = (PerplexitySpec, IclSpec, SuffixSpec, ProbeSpec, TrainSpec, FitSpec, PretrainSpec, PlanSpec)


@pytest.mark.parametrize("spec", SPECS)
def test_an_option_marked_as_a_model_setting_is_a_field_of_the_model_config(spec: type[CommandSpec]) -> None:
    assert set(marked_fields(spec, MODEL_SETTING)) <= {each.name for each in fields(LongMemConfig)}


def test_an_option_of_the_preset_is_a_field_of_its_config() -> None:
    from longmem.pretraining.presets import preset_of

    assert set(marked_fields(PretrainSpec, OF_THE_PRESET)) <= set(vars(preset_of("8m").config))


def test_options_that_a_service_decides_are_refused_by_their_flags() -> None:
    spec = PerplexitySpec(given=frozenset({"encoders", "kv_dtype", "model", "out"}), encoders=2, kv_dtype="int8")
    with pytest.raises(ConfigError, match=r"^--kv-dtype, --encoders: leave it out$"):
        refuse_given(spec, DECIDED_BY_SERVICE, "leave it out")
    free = {each.name for each in fields(PerplexitySpec)} - set(marked_fields(PerplexitySpec, DECIDED_BY_SERVICE))
    # a new option is in this set, or carries DECIDED_BY_SERVICE
    assert free == {
        *("given", "begun_s", "inputs", "model", "adapter", "out", "resume", "address", "service", "max_tries"),
        *("task_deadline_s", "retention", "keep_memory", "namespace", "limit_documents", "limit_tokens", "tokens"),
        *("as_json", "quiet", "verbose", "dataset", "subset", "split", "text_column", "id_column"),
        *("max_in_flight_segments", "max_in_flight_bytes", "window", "stride"),
    }


def test_every_cluster_option_is_a_field_of_the_cluster_shape() -> None:
    shape = ClusterOptions(readers=3, threads=2, placement="spread").shape(object_store_bytes=2**27)
    assert shape == ClusterShape(readers=3, threads=2, placement="spread", object_store_bytes=2**27)


def test_choices_are_those_of_the_library() -> None:
    assert get_args(SearchEngine) == ("auto", *SEARCH_ENGINES)
    [key] = [each.type for each in fields(ProbeSpec) if each.name == "key"]
    assert get_args(key) == get_args(KeyKind)


def test_settings_are_the_given_ones_and_no_memory_is_a_memory_of_0_tokens() -> None:
    assert OptionalMemoryOptions(top_k=8, kv_dtype="int8").settings() == {"top_k": 8, "kv_dtype": "int8"}
    assert OptionalMemoryOptions(no_memory=True).settings() == {"memory_tokens": 0}
    with pytest.raises(ConfigError, match="--no-memory and --memory-tokens contradict each other"):
        OptionalMemoryOptions(no_memory=True, memory_tokens=64).settings()


def test_local_training_data_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    options = FitSpec(data=["books", "s3://bucket/books"], out=tmp_path / "out")
    assert options.training_data == (str(tmp_path / "books"), "s3://bucket/books")
    assert options.validation_data == ()


def test_a_folder_that_is_not_named_stays_the_same_during_the_command() -> None:
    spec = PerplexitySpec()
    assert spec.folder is spec.folder
    assert spec.resumable_folder == spec.folder
    assert CountSpec(title="T").resumable_folder is None
