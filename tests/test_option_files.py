"""Files of loss options: what they add, and how their mistakes are reported."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import QUICK, ROOT, TINY, SessionHere, comparison, newest, run_pytest

from bvae.config import (
    DEFAULT_MODEL,
    LOSS_OPTIONS,
    OPTION_NAME,
    SHARED_SETTINGS,
    WEIGHT_METHODS,
    ConfigError,
    ExperimentConfig,
    LossOption,
    TrainingConfig,
    weight_ratio,
    weights_of_option,
)
from bvae.option_files import MAX_BYTES, OptionFileError, allow_models, read_options
from bvae.options import parse_experiment
from bvae.plugin import separated_path
from bvae.session import SessionRecord
from bvae.storage import differences, from_json, read_json, to_json

METHODS = f"{', '.join(WEIGHT_METHODS)}, or a positive finite number for each class"


@pytest.fixture
def documented(tmp_path: Path) -> str:
    """The complete example of the documentation, as a file."""
    text = (ROOT / "docs/loss-options.md").read_text()
    path = tmp_path / "losses.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    return str(path)


def names(experiment: ExperimentConfig) -> list[str]:
    return [option.name for option in experiment.options]


@pytest.mark.unit
def test_the_documented_example_gives_the_documented_options(documented: str) -> None:
    explicit = (0.3, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0)
    assert list(read_options(documented).values()) == [
        LossOption(
            name="D",
            gamma=2.0,
            class_weights="effective",
            beta=0.9999,
            candidate=True,
            role="effective number of samples",
        ),
        LossOption(name="E", gamma=1.5, class_weights="power", exponent=0.4, candidate=True),
        LossOption(name="hand-made", gamma=0.0, class_weights=explicit, candidate=False),
        LossOption(name="B", gamma=1.0, class_weights="sqrt_inverse", candidate=True),
    ]


@pytest.mark.unit
def test_a_file_adds_to_the_built_in_options_or_replaces_them(documented: str) -> None:
    experiment = parse_experiment({"loss_options_file": documented})
    assert names(experiment) == ["A", "B", "C", "D", "E", "hand-made"]
    assert experiment.options[0] == LOSS_OPTIONS["A"]
    assert experiment.options[1].gamma == 1.0


@pytest.mark.unit
def test_names_select_from_the_built_in_options_and_the_file(documented: str) -> None:
    given_values = {"loss_options_file": documented, "loss_options": "D,A,B"}
    assert names(parse_experiment(given_values)) == ["D", "A", "B"]
    with pytest.raises(
        ValueError, match="--loss-options names 'Z'; expected names among A,B,C,D,E,hand-made"
    ):
        parse_experiment(given_values | {"loss_options": "Z"})
    with pytest.raises(ValueError, match=r"--loss-options names 'D'; expected names among A,B,C$"):
        parse_experiment({"loss_options": "D"})


@pytest.mark.unit
def test_a_recorded_experiment_resumes_without_its_options_file(documented: str) -> None:
    asked = {"loss_options_file": documented, "loss_options": "A,B,D,hand-made"}
    begun = parse_experiment(asked)
    recorded = from_json(to_json(begun), ExperimentConfig)
    assert recorded == begun
    assert parse_experiment({}, recorded) == begun
    assert parse_experiment({"loss_options": asked["loss_options"]}, recorded) == begun
    assert parse_experiment(asked, recorded) == begun


@pytest.mark.unit
def test_a_changed_options_file_differs_from_the_record(documented: str) -> None:
    asked = {"loss_options_file": documented}
    begun = parse_experiment(asked)
    Path(documented).write_text(Path(documented).read_text().replace("0.9999", "0.99"))
    assert differences(parse_experiment(asked, begun), begun) == ["options.3.beta was 0.9999 and is 0.99"]


@pytest.mark.unit
def test_options_recorded_by_versions_without_weight_parameters_are_read() -> None:
    data = (
        '{"name": "B", "gamma": 2.0, "class_weights": "sqrt_inverse", "candidate": true, "role": "proposed"}'
    )
    assert from_json(data, LossOption) == LOSS_OPTIONS["B"]


positive = st.floats(1e-300, 1e300)
options = st.builds(
    lambda weighing, **values: LossOption(**values, **weighing),
    name=st.from_regex(OPTION_NAME, fullmatch=True).filter(lambda name: name.casefold() not in "abc"),
    gamma=st.floats(0, 1e300),
    candidate=st.booleans(),
    role=st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=20),
    weighing=st.one_of(
        st.sampled_from(["none", "inverse", "sqrt_inverse"]).map(lambda method: {"class_weights": method}),
        st.floats(0, 1e300).map(lambda value: {"class_weights": "power", "exponent": value}),
        st.floats(0, 1, exclude_max=True).map(lambda value: {"class_weights": "effective", "beta": value}),
        st.tuples(*[positive] * 10).map(lambda weights: {"class_weights": weights}),
    ),
    training=st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 1000),
            "beta": st.floats(0, 10),
            "beta_schedule": st.sampled_from(["constant", "cyclical"]),
            "latent_dim": st.integers(1, 4096),
            "model": st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=20),
        },
    ),
)


def toml(option: LossOption) -> str:
    """Return an option as a TOML table; its JSON values are also valid TOML."""
    values = {key: value for key, value in dataclasses.asdict(option).items() if value is not None}
    name, training = values.pop("name"), values.pop("training")
    tables = {name: values, f"{name}.training": training}
    return "".join(
        f"[{table}]\n" + "".join(f"{key} = {json.dumps(keys[key], ensure_ascii=False)}\n" for key in keys)
        for table, keys in tables.items()
    )


@pytest.mark.unit
@given(option=options)
def test_every_option_survives_toml_and_json(
    tmp_path_factory: pytest.TempPathFactory, option: LossOption
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(toml(option), "utf-8")
    assert read_options(str(path)) == {option.name: option}
    assert from_json(to_json(option), LossOption) == option


VALID = 'class_weights = "none"\n'
HEAD = "[D]\ngamma = 1\n"
TRAINING = "[D]\nbase = 'B'\n[D.training]\n"
MISTAKES = [
    ("[D]\ngamma = -1\n" + VALID, "D", "gamma", "is -1.0; expected a finite number of at least 0"),
    ("[D]\ngamma = nan\n" + VALID, "D", "gamma", "is nan; expected a finite number"),
    ("[D]\ngamma = true\n" + VALID, "D", "gamma", "is True; expected a number"),
    ("[D]\ngamma = '2'\n" + VALID, "D", "gamma", "is '2'; expected a number"),
    (f"[D]\n{VALID}gamma = 1{'0' * 400}", "D", "gamma", f"is 1{'0' * 78}…; expected a number"),
    (f"[D]\n{VALID}gamma = 0x{'f' * 5000}", "D", "gamma", "is a number of thousands of digits; expected"),
    (f"{HEAD}class_weights = 'cubic'", "D", "class_weights", f"is 'cubic'; expected one of {METHODS}"),
    (f"{HEAD}class_weights = 3", "D", "class_weights", f"is 3; expected one of {METHODS}"),
    (f"{HEAD}class_weights = [1, 'x']", "D", "class_weights", f"is [1, 'x']; expected one of {METHODS}"),
    (
        f"{HEAD}class_weights = [1{',1' * 8},0]",
        "D",
        "class_weights",
        "has 0.0 for class 9; expected a positive finite number",
    ),
    (
        f"{HEAD}class_weights = [inf{',1' * 9}]",
        "D",
        "class_weights",
        "has inf for class 0; expected a positive finite number",
    ),
    (f"{HEAD}class_weights = 'effective'\nbeta = 1", "D", "beta", "is 1.0; expected beta with 0 <= beta < 1"),
    (
        f"{HEAD}class_weights = 'effective'",
        "D",
        "beta",
        "is missing, but class weights 'effective' need it; expected beta with",
    ),
    (
        f"{HEAD}class_weights = 'power'\nexponent = -2",
        "D",
        "exponent",
        "is -2.0; expected exponent with 0 <=",
    ),
    (
        f"{HEAD}beta = 0.5\n{VALID}",
        "D",
        "beta",
        "is 0.5; expected none, as it belongs to class weights 'effective'",
    ),
    (f"{HEAD}{VALID}candidate = 1", "D", "candidate", "is 1; expected true or false"),
    (f"{HEAD}{VALID}role = 7", "D", "role", "is 7; expected a text of one line"),
    (f'{HEAD}{VALID}role = """a\nb"""', "D", "role", "is 'a\\nb'; expected a text of one line"),
    (
        f"{HEAD}gama = 1\n{VALID}",
        "D",
        "",
        "has the key 'gama'; expected keys among gamma, class_weights, beta,",
    ),
    (f"[E]\ngamma = 1\n{VALID}\n[D]\n{VALID}", "D", "", "has no gamma; expected gamma and class_weights"),
    (HEAD, "D", "", "has no class_weights; expected gamma and class_weights"),
    (
        f"{HEAD}{VALID}base = 'Z'",
        "D",
        "base",
        "is 'Z'; expected the name of a built-in option or of an earlier",
    ),
    ("[D]\nbase = 'E'\n[E]\nbase = 'B'", "D", "base", "is 'E'; expected the name of a built-in option or of"),
    ("[D]\nbase = 'D'", "D", "base", "is 'D'; expected the name of a built-in option or of an earlier table"),
    ("[D]\nbase = 2", "D", "base", "is 2; expected the name of a built-in option or of an earlier table"),
    ("[D]\nbase = 'B'\nbeta = 0.5", "D", "beta", "is 0.5; expected none, as it belongs to class weights"),
    (
        "[D]\nbase = 'B'\ntraining = 8",
        "D",
        "training",
        "is 8; expected a table of training settings, such as",
    ),
    (f"{TRAINING}latents = 8", "D", "training", "has the key 'latents'; expected keys among epochs, "),
    (f"{TRAINING}device = 'cuda'", "D", "training", "has the key 'device'; expected keys among epochs, "),
    (f"{TRAINING}epochs = 2.0", "D", "training.epochs", "is 2.0; expected a whole number"),
    (f"{TRAINING}epochs = true", "D", "training.epochs", "is True; expected a whole number"),
    (f"{TRAINING}epochs = 0", "D", "training.epochs", "is 0; expected a whole number of at least 1 and"),
    (f"{TRAINING}epochs = 0x{'f' * 5000}", "D", "training.epochs", "is a number of thousands of digits; exp"),
    (f"{TRAINING}beta = nan", "D", "training.beta", "is nan; expected a finite number of at least 0"),
    (f"{TRAINING}beta = '1'", "D", "training.beta", "is '1'; expected a number"),
    (f"{TRAINING}model = 3", "D", "training.model", "is 3; expected a text"),
    (
        f"{TRAINING}beta_schedule = 'up'",
        "D",
        "training.beta_schedule",
        "is 'up'; expected one of constant, linear, cyclical",
    ),
    ("\ngamma = 1", "", "", "'gamma' is not a table; expected one table per option, such as [D]"),
    ("[[D]]\ngamma = 1", "", "", "'D' is not a table; expected one table per option, such as [D]"),
    (
        f'["my loss"]\ngamma = 1\n{VALID}',
        "my loss",
        "name",
        "is 'my loss'; expected a letter, then letters, digits, _ or -",
    ),
    (f'["../D"]\ngamma = 1\n{VALID}', "../D", "name", "is '../D'; expected a letter"),
    (f"[D{'x' * 32}]\ngamma = 1\n{VALID}", f"D{'x' * 32}", "name", f"is 'D{'x' * 32}'; expected a letter"),
    (
        f"{HEAD}{VALID}[d]\ngamma = 1\n{VALID}",
        "d",
        "",
        "differs from D only in letter case; expected another name",
    ),
    (
        f"[b]\ngamma = 1\n{VALID}",
        "b",
        "",
        "differs from B only in letter case; expected another name, or a built-in name",
    ),
    ("# nothing\n", "", "", "has no options; expected one table per option, such as [D]"),
    ("[D]\ngamma 1\n", "", "", "is not TOML: "),
    (f"{HEAD}gamma = 2\n", "", "", "is not TOML: "),
    (f"{HEAD}[D]\n", "", "", "is not TOML: "),
    ("[D]\n\nclass_weights = [1,\n2\n", "", "", "is not TOML: "),
    ("[D]\ngamma = " + "[" * 5000, "", "", "is not TOML: "),
    (f"[D]\ngamma = {'1' * 5000}", "", "", "is not TOML: "),
]


def complaint(path: Path) -> str:
    with pytest.raises(ValueError, match=r"^--loss-options-file ") as caught:
        parse_experiment({"loss_options_file": str(path)})
    message = str(caught.value)
    assert message.startswith(f"--loss-options-file {path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300
    return message.removeprefix(f"--loss-options-file {path}: ")


@pytest.mark.unit
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("text", "table", "key", "expected"), MISTAKES, ids=[f"{key} {mistake}" for *_, key, mistake in MISTAKES]
)
def test_a_mistake_is_reported_with_table_key_and_expected_value(
    tmp_path: Path, text: str, table: str, key: str, expected: str, newline: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.replace("\n", newline).encode())
    where = "".join([f"[{table}] " if table else "", f"{key} " if key else ""])
    assert complaint(path).startswith(where + expected)
    with pytest.raises(OptionFileError) as caught:
        read_options(str(path))
    assert (caught.value.path, caught.value.table, caught.value.key) == (str(path), table, key)


def read(folder: Path, text: str) -> dict[str, LossOption]:
    path = folder / "settings.toml"
    path.write_text(text)
    return read_options(str(path))


@pytest.mark.unit
def test_the_documented_settings_are_copies_with_other_training(tmp_path: Path) -> None:
    documents = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/loss-options.md").read_text(), re.DOTALL)
    b = LOSS_OPTIONS["B"]
    assert list(read(tmp_path, documents[1]).values()) == [
        dataclasses.replace(b, name="B-8", training={"latent_dim": 8}),
        dataclasses.replace(b, name="B-8-long", training={"latent_dim": 8, "epochs": 10, "beta": 0.001}),
        dataclasses.replace(b, name="B-linear", training={"model": "linear_vae:make"}),
    ]


@pytest.mark.unit
@given(
    option=options, base=options, kept=st.sets(st.sampled_from(["gamma", "candidate", "role", "training"]))
)
def test_a_table_with_a_base_replaces_the_given_keys_of_the_base(
    tmp_path_factory: pytest.TempPathFactory, option: LossOption, base: LossOption, kept: set[str]
) -> None:
    base = dataclasses.replace(base, name="base0")
    option = dataclasses.replace(option, name="option1")
    expected = dataclasses.replace(option, **{key: getattr(base, key) for key in kept})
    table = toml(option).replace("[option1]\n", "[option1]\nbase = 'base0'\n")
    for key in kept - {"training"}:
        table = re.sub(rf"^{key} = .*\n", "", table, count=1, flags=re.MULTILINE)
    changes = {} if "training" in kept else option.training
    table = table.partition("[option1.training]")[0] + "[option1.training]\n"
    table += "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in changes.items())
    found = read(tmp_path_factory.getbasetemp(), toml(base) + table)["option1"]
    assert found == dataclasses.replace(expected, training={**base.training, **changes})


@pytest.mark.unit
def test_each_training_setting_is_shared_or_can_differ_between_options() -> None:
    for field in dataclasses.fields(TrainingConfig):
        value = getattr(TrainingConfig(epochs=7, latent_dim=3, device="cuda"), field.name)
        if field.name in SHARED_SETTINGS:
            with pytest.raises(
                ConfigError, match=f"training has the key '{field.name}'; expected keys among"
            ):
                dataclasses.replace(LOSS_OPTIONS["B"], training={field.name: value})
        else:
            changed = dataclasses.replace(LOSS_OPTIONS["B"], training={field.name: value})
            experiment = ExperimentConfig(options=(LOSS_OPTIONS["A"], changed))
            runs = [experiment.run(option, 0, "f") for option in experiment.options]
            assert runs[0].training == experiment.training
            assert runs[1].training == dataclasses.replace(experiment.training, **{field.name: value})
            assert runs[1].option == changed
            assert hash(changed) == hash(dataclasses.replace(changed))


@pytest.mark.unit
def test_a_refusal_of_inconsistent_settings_names_the_option(
    tmp_path: Path,
) -> None:
    (tmp_path / "o.toml").write_text(f"{TRAINING}beta_schedule = 'linear'\nbeta_warmup = 8")
    asked = {"loss_options_file": str(tmp_path / "o.toml")}
    assert parse_experiment(asked | {"epochs": "8"})
    with pytest.raises(
        ValueError, match=r"training.beta_warmup of option D is 8; expected at most 5, the epochs of a run"
    ):
        parse_experiment(asked)


@pytest.mark.unit
def test_a_session_is_resumed_only_if_all_its_models_are_named_again() -> None:
    def trained_with(*models: str) -> ExperimentConfig:
        b = LOSS_OPTIONS["B"]
        changes = [dataclasses.replace(b, name=f"B{i}", training={"model": m}) for i, m in enumerate(models)]
        return ExperimentConfig(options=(b, *changes))

    two = trained_with("a:make", "b:make")
    for given_model in (None, DEFAULT_MODEL, "a:make", "c:make"):
        with pytest.raises(ValueError, match=r"'b:make'; add --model a:make,b:make to import"):
            allow_models(two, {"model": given_model})
    assert allow_models(two, {"model": "b:make,a:make", "epochs": "3"}) == {"model": None, "epochs": "3"}
    assert allow_models(trained_with(), {"model": None}) == {"model": None}
    # `--model` is kept if it also names a model that the session does not train; resuming then refuses it.
    assert allow_models(trained_with("a:make"), {"model": "a:make,z:make"}) == {"model": "a:make,z:make"}


@pytest.mark.unit
def test_a_file_that_cannot_be_read_as_text_is_refused(tmp_path: Path) -> None:
    missing, large, latin, pipe = (tmp_path / name for name in ("missing", "large", "latin", "pipe"))
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    latin.write_bytes("[D]\nrole = 'für'".encode("latin-1"))
    os.mkfifo(pipe)
    for path in (missing, tmp_path, pipe):
        assert complaint(path) == "is not a file; expected a TOML file, such as losses.toml"
    assert complaint(large) == "is larger than 256 KiB; expected a smaller TOML file"
    assert complaint(latin) == "is not UTF-8; save the file as UTF-8"
    assert complaint(tmp_path / ("x" * 300)).startswith("cannot be read (")


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    {
        "a key of 20,000 parts": ".".join(["a"] * 20_000) + " = 1",
        "a table of 20,000 parts": f"[{'.'.join(['a'] * 20_000)}]",
        "20,000 dotted keys": "\n".join(f"a.b{i}.c = 1" for i in range(20_000)),
        "2,500 keys of 80 parts": "\n".join(".".join([f"a{i}"] * 80) + " = 1" for i in range(2_500)),
        "arrays in arrays": f"a = {'[' * 20_000}{']' * 20_000}",
        "tables in tables": f"a = {'{a=' * 20_000}1{'}' * 20_000}",
    }.values(),
    ids=["key", "table", "keys", "long keys", "arrays", "tables"],
)
def test_a_nested_file_is_refused_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "losses.toml"
    path.write_text(text[:MAX_BYTES])
    began = time.process_time()
    assert complaint(path)
    assert time.process_time() - began < 2


@pytest.mark.unit
@pytest.mark.parametrize("weights", ["power", (1e-300, 1e300)])
def test_a_weight_ratio_beyond_float32_is_a_number(weights: str | tuple[float, float]) -> None:
    option = LossOption(
        name="D",
        gamma=2.0,
        candidate=True,
        class_weights=weights,
        exponent=500.0 if weights == "power" else None,
    )
    ratio = weight_ratio(weights_of_option(option, [10**6, 1]))
    assert ratio == np.finfo(np.float32).max


@pytest.mark.unit
def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_text(f"[D]\ngamma = 1\n{VALID}", "utf-8-sig")
    assert read_options(str(path)).keys() == {"D"}


@pytest.mark.unit
@given(st.text() | st.lists(st.sampled_from("[]{}=\"'#\n\\.,D1 a\r")).map("".join))
def test_arbitrary_text_gives_one_printable_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(OptionFileError) as caught:
        read_options(str(path))
    assert str(caught.value).isprintable()


@pytest.mark.unit
def test_the_file_must_be_given_with_an_equals_sign() -> None:
    corrected = separated_path(["experiments/", "--loss-options-file", "losses.toml"])
    assert corrected is not None
    assert "--loss-options-file=losses.toml" in corrected
    assert separated_path(["--loss-options-file=losses.toml"]) is None


@pytest.mark.slow
def test_options_from_a_file_are_trained_and_resumed_without_the_file(
    lab: Path, session_here: SessionHere, documented: str
) -> None:
    brief = (*TINY, "--epochs", "1", "--loss-options", "B,D,hand-made")
    status, said = session_here(*brief, f"--loss-options-file={documented}")
    assert status == 1, said
    found = comparison(lab)["options"]
    assert {name: (option["gamma"], option["class_weights"]) for name, option in found.items()} == {
        "B": (1.0, "sqrt_inverse"),
        "D": (2.0, "effective"),
        "hand-made": (0.0, "explicit"),
    }
    assert found["hand-made"]["weight_ratio"] == pytest.approx(2 / 0.3)
    assert all(option["runs"][0]["metrics"] for option in found.values())
    assert comparison(lab)["gate"]["candidates"] == ["B", "D"]
    assert "| explicit (6.7 : 1) |" in (newest(lab) / "comparison/comparison.md").read_text()
    record = read_json(newest(lab) / "session.json", SessionRecord)
    assert list(record.config.options) == [read_options(documented)[name] for name in found]
    Path(documented).unlink()
    status, said = session_here("--resume=latest")
    assert status == 1, said
    assert comparison(lab)["options"] == found


@pytest.mark.slow
def test_a_bad_file_ends_in_one_sentence_and_exit_code_4(lab: Path) -> None:
    (lab / "bad.toml").write_text("[D]\ngamma = 2\nclass_weights = 'cubic'\n")
    done = run_pytest("experiments/", *QUICK, *TINY, "-n2", "--loss-options-file=bad.toml")
    assert done.returncode == 4, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line]
    assert errors == [
        f"ERROR: --loss-options-file bad.toml: [D] class_weights is 'cubic'; expected one of {METHODS}"
    ]
    assert not (lab / "runs").exists()


@pytest.mark.unit
def test_the_training_settings_of_an_option_are_found_by_its_name() -> None:
    own = LossOption(name="D", gamma=2.0, class_weights="none", candidate=True, training={"until_plateau": 1})
    config = ExperimentConfig(options=(LOSS_OPTIONS["A"], own))
    assert config.training_of("A") == config.training
    assert config.training_of("D") == dataclasses.replace(config.training, until_plateau=1)
    assert config.run(own, 0, "f").training == config.training_of("D")
