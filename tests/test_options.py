"""The command-line options: declared once, accepted by pytest and `python -m bvae`, and documented."""

from __future__ import annotations

import argparse
import re

import pytest
from lab import ROOT

from bvae import __main__ as command_line
from bvae.config import (
    LOSS_OPTIONS,
    AccuracyBand,
    ConfigError,
    ExperimentConfig,
    LossOption,
    TrainingConfig,
)
from bvae.option_files import select_options
from bvae.options import OPTIONS, CommandLineOption, options_document, options_of, parse_experiment

pytestmark = pytest.mark.unit


def test_the_documentation_lists_the_current_options() -> None:
    assert (ROOT / "docs/options.md").read_text() == options_document()


def test_the_command_prints_the_document_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["options"]) == 0
    assert capsys.readouterr().out == options_document()


def test_pytest_takes_the_options_declared_for_it(pytestconfig: pytest.Config) -> None:
    for option in options_of("pytest"):
        expected = False if not option.metavar else None if option.field else option.own_default or None
        assert pytestconfig.getoption(option.key) == expected


@pytest.mark.parametrize("command", [each.__name__ for each in command_line.COMMANDS])
def test_a_command_takes_the_options_declared_for_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line.main([command, "--help"])
    shown = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert shown == {"--help", *(option.flag for option in options_of(command))}


def test_defaults_come_from_the_configuration() -> None:
    given = {option.key: option.default or None for option in OPTIONS if option.field}
    assert parse_experiment(given) == parse_experiment({}) == ExperimentConfig(grid_size="auto")


def option_of_weights(count: int) -> LossOption:
    return LossOption(name="D", gamma=1, class_weights=(1.0,) * count, candidate=True)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TrainingConfig(epochs=0), "epochs"),
        (lambda: TrainingConfig(beta=-1.0), "beta"),
        (lambda: TrainingConfig(free_bits=-1.0), "free_bits"),
        (lambda: TrainingConfig(keep_checkpoints=0), "keep_checkpoints"),
        (lambda: TrainingConfig(beta_warmup=0.0), "beta_warmup"),
        (lambda: TrainingConfig(beta_schedule="up"), "beta_schedule"),  # type: ignore[arg-type]
        (lambda: TrainingConfig(precision="fp16"), "precision"),  # type: ignore[arg-type]
        (lambda: ExperimentConfig(seeds=0), "seeds"),
        (lambda: ExperimentConfig(options=()), "options"),
        (lambda: ExperimentConfig(classes=1), "classes"),
        (lambda: ExperimentConfig(classes=65), "classes"),
        (lambda: ExperimentConfig(options=(option_of_weights(2),), classes=3), "class_weights"),
        (lambda: ExperimentConfig(options=(LOSS_OPTIONS["A"],) * 2), "options"),
        (lambda: AccuracyBand(0.8, 0.7), "band"),
        (lambda: AccuracyBand.parse("0.7"), "band"),
        (lambda: select_options("Z"), "options"),
        (lambda: LossOption(name="D", gamma=-1, class_weights="none", candidate=True), "gamma"),
        (lambda: LossOption(name="D", gamma=1, class_weights=(1.0, 0.0), candidate=True), "class_weights"),
        (lambda: LossOption(name="D", gamma=1, class_weights="power", candidate=True), "exponent"),
        (lambda: LossOption(name="a b", gamma=1, class_weights="none", candidate=True), "name"),
        (lambda: LossOption(name="D", gamma=1, class_weights="none", candidate=True, role="a\n"), "role"),
    ],
)
def test_an_error_names_the_field_that_is_wrong(make, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} .*; expected ") as caught:
        make()
    assert caught.value.field == field
    assert str(caught.value.shown_as("--this")).startswith(f"--this {caught.value.problem}; expected ")


def test_checkpoints_to_keep_are_a_number_or_a_word() -> None:
    texts = {"all": "all", "last": 1, "best": 1, "3": 3}
    for text, kept in texts.items():
        assert parse_experiment({"keep_checkpoints": text}).training.keep_checkpoints == kept
    for text, expected in {"some": "all, last, best, or a whole number", "0": "a whole number of at"}.items():
        with pytest.raises(ConfigError, match=f"^--keep-checkpoints is '?{text}'?; expected {expected}"):
            parse_experiment({"keep_checkpoints": text})


def test_each_option_sets_its_own_field() -> None:
    fields = {option.field for option in OPTIONS if option.field}
    assert fields <= {*TrainingConfig.__dataclass_fields__, *ExperimentConfig.__dataclass_fields__}
    assert len(fields) == len([option for option in OPTIONS if option.field])


def test_an_option_is_recorded_by_the_session_or_repeated_when_it_is_resumed() -> None:
    not_repeated = {each.name for each in options_of("pytest") if not each.field and not each.repeated}
    in_session = {"loss-options-file", "run-dir", "baseline"}
    assert not_repeated == {*in_session, "resume", "extend"}
    assert not any(each.field for each in OPTIONS if each.repeated)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("--option", "X"), "--option names 'X'; expected names among A,B,C"),
        (("--seed", "-1"), "--seed is '-1'; expected a whole number from 0 to 999"),
        (("--seed", "1000"), "--seed is '1000'; expected a whole number from 0 to 999"),
        (("--seeds", "2"), "--seeds extends a session; expected --resume=DIR, or --option and --seed"),
        (("--loss-options", "A"), "--loss-options extends a session; expected --resume=DIR"),
        (("--epochs", "0"), "--epochs is 0; expected a whole number of at least 1"),
    ],
)
def test_the_command_of_one_run_names_the_flag_that_was_typed(
    capsys: pytest.CaptureFixture[str], given: tuple[str, str], complaint: str
) -> None:
    assert command_line.main(["train", *given]) == 4
    assert f"ERROR: {complaint}" in capsys.readouterr().err


PATH_OPTIONS = [option for option in OPTIONS if option.takes_path]


def test_these_options_take_a_path() -> None:
    assert {option.name for option in PATH_OPTIONS} == {
        *("corpus", "loss-options-file", "run-dir", "resume", "baseline"),
        *("html", "csv", "output"),
    }


@pytest.mark.parametrize("option", PATH_OPTIONS, ids=lambda option: option.name)
def test_every_option_that_takes_a_path_expands_the_home_folder(
    option: CommandLineOption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    read = option.keywords["type"]
    assert read("~/x") == "/home/someone/x"
    others = ["./arc", "arc", "x~", "objects:20"]
    assert [*map(read, others)] == others


@pytest.mark.parametrize("option", PATH_OPTIONS, ids=lambda option: option.name)
def test_a_path_that_is_not_utf_8_is_refused_in_a_sentence(option: CommandLineOption) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"'x\\udcff' is not UTF-8; rename") as refusal:
        option.keywords["type"]("x\udcff")
    str(refusal.value).encode()
