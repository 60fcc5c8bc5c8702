"""bvae in projects of other people: with or without experiments, with other plugins, in other processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from evidence_factory import CORPUS, REFERENCES, result
from lab import ROOT, run_pytest, running, sabotage, wait_for

from bvae.config import LOSS_OPTIONS, ExperimentConfig
from bvae.hooks import resuming_command
from bvae.judging.comparison import compare
from bvae.options import options_of
from bvae.plugin import uses_experiments
from bvae.report.text import explain_outcome, to_terminal

SMALL = ("--corpus=atomic:200", "--epochs", "1", "--seeds", "1", "--loss-options", "B")
GUEST = ("-p", "bvae.plugin", *SMALL)
PACKAGED = (*GUEST, "--pyargs", "bvae.experiments")

IMPORTING = "from bvae.experiments.test_loss_options import *\n"
OURS = "def test_it(laboratory): pass\n"
THEIRS = '''"""Of a laboratory and its loss_run."""
import pytest
laboratory = "loss_baseline"
def test_it(tmp_path): assert str("bvae.experiments") and laboratory
'''
THEIR_FIXTURE = f"""
import pytest
@pytest.fixture
def laboratory(): return 1
{OURS}"""


@pytest.mark.unit
@pytest.mark.parametrize(
    ("files", "arguments", "expected"),
    [
        ({"test_a.py": OURS}, (), True),
        ({"test_a.py": IMPORTING}, (), True),
        ({"test_a.py": "import bvae.experiments.test_loss_options\n"}, (), True),
        ({"test_a.py": "from bvae import experiments\n"}, (), True),
        (
            {"test_a.py": "import pytest\n@pytest.mark.usefixtures('loss_baseline')\ndef test(): pass\n"},
            (),
            True,
        ),
        ({"test_a.py": "def test_it(request): request.getfixturevalue('laboratory')\n"}, (), True),
        ({"deep/er/test_a.py": OURS}, ("deep",), True),
        ({"deep/er/test_a.py": OURS}, ("deep/er/test_a.py::test_it",), True),
        ({"deep/er/test_a.py": OURS}, ("deep/../deep/er/test_a.py::test_it[A::B]",), True),
        ({"odd_name.py": OURS}, ("odd_name.py",), True),
        ({"check_it.py": OURS}, ("-o", "python_files=check_*.py"), True),
        ({"tests/test_a.py": OURS, "other/test_b.py": THEIRS}, ("-o", "testpaths=tests"), True),
        (
            {"tests/test_a.py": THEIRS, "tests/conftest.py": OURS.replace("test_it", "helper")},
            ("tests",),
            True,
        ),
        ({"conftest.py": OURS.replace("test_it", "helper"), "tests/test_a.py": THEIRS}, ("tests",), True),
        ({"package/__init__.py": "", "package/test_a.py": OURS}, ("--pyargs", "package"), True),
        ({"package/__init__.py": "", "package/test_a.py": OURS}, ("--pyargs", "package.test_a"), True),
        ({}, ("--pyargs", "bvae.experiments"), True),
        ({"test_a.py": THEIRS}, (), False),
        ({"test_a.py": THEIR_FIXTURE}, (), False),
        ({"experiments/test_a.py": THEIRS}, ("experiments",), False),
        ({"odd_name.py": OURS}, (), False),
        ({"tests/test_a.py": THEIRS, "other/test_b.py": OURS}, ("tests",), False),
        ({"tests/test_a.py": THEIRS, "tests/test_b.py": OURS}, ("--ignore=tests/test_b.py",), False),
        ({"build/test_a.py": OURS, ".hidden/test_b.py": OURS}, (), False),
        ({"env/pyvenv.cfg": "", "env/test_a.py": OURS}, (), False),
        ({"test_a.py": "not python: laboratory("}, (), False),
        ({}, ("missing",), False),
    ],
)
def test_an_experiment_is_detected_from_the_names_that_tests_use(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, files: dict, arguments: tuple, expected: bool
) -> None:
    monkeypatch.syspath_prepend(pytester.path)
    for name, text in files.items():
        (pytester.path / name).parent.mkdir(parents=True, exist_ok=True)
        (pytester.path / name).write_text(text)
    config = pytester.parseconfig("-p", "bvae.plugin", *arguments)
    assert uses_experiments(config) is expected


@pytest.mark.unit
def test_an_experiment_is_detected_behind_circular_symbolic_links(pytester: pytest.Pytester) -> None:
    away = pytester.mkdir("away")
    (away / "test_a.py").write_text(OURS)
    (away / "round").symlink_to(away)
    tests = pytester.mkdir("tests")
    (tests / "linked").symlink_to(away)
    assert uses_experiments(pytester.parseconfig("-p", "bvae.plugin", "tests"))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("tests", "-v", "--corpus=arc"), "tests"),
        (("-p", "bvae.plugin", "--pyargs", "bvae.experiments"), "-p bvae.plugin --pyargs bvae.experiments"),
        (("-c", "other.ini", "--rootdir=.", "my tests"), "-c other.ini --rootdir=. 'my tests'"),
        (("--rootdir", ".", "test_a.py::test_it[A]"), "--rootdir . 'test_a.py::test_it[A]'"),
        (("--config-file", "other.ini", "--epochs", "2", "tests"), "--config-file other.ini tests"),
        (
            ("tests", "--run-dir=a", "--engine", "ray", "--gpus-per-run=1"),
            "tests --engine ray --gpus-per-run=1",
        ),
        (("--shard=1/2", "--fail-on-regression", "tests"), "--shard=1/2 --fail-on-regression tests"),
    ],
)
def test_the_command_that_resumes_collects_the_same_tests(
    pytester: pytest.Pytester, given: tuple[str, ...], kept: str
) -> None:
    pytester.makefile(".ini", other="[pytest]\naddopts = -p bvae.plugin\n")
    pytester.makefile(".ini", pytest="[pytest]\naddopts = -p bvae.plugin\n")
    assert resuming_command(pytester.parseconfig(*given)) == f"pytest {kept}"


@pytest.fixture
def guest(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, without environment variables of pytest-xdist."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    # pytester gives each test its own home folder, where matplotlib would rebuild its font cache.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())
    return pytester.path


@pytest.mark.slow
def test_a_project_that_only_loads_the_plugin_notices_nothing(guest: Path) -> None:
    (guest / "experiments").mkdir()
    (guest / "experiments/test_a.py").write_text(
        f"{THEIRS}\nimport signal\n@pytest.mark.gate\ndef test_first(): pass\n"
        "def test_handlers(): assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    ours = ("-p", "bvae.plugin", "--run-dir=/proc/none", "--corpus=missing.npz", "--seeds", "1")
    done = run_pytest("experiments", "-v", "-n0", "--html=report.html", *ours)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.index("test_first") < done.stdout.index("test_handlers")
    assert "Which loss" not in (guest / "report.html").read_text()
    assert not (guest / "runs").exists()


def run_alone(path: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run pytest with a folder of packages on the path, and without editable installs."""
    packages = sysconfig.get_paths()["purelib"]
    code = f"import sys; sys.path.append({packages!r}); import pytest; sys.exit(pytest.console_main())"
    command, environment = [sys.executable, "-S", "-c", code, *arguments], {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


OTHER_PLUGINS = (
    *("pytest-asyncio", "pytest-randomly", "pytest-playwright", "playwright", "pytest-base-url"),
    *("python-slugify", "text-unidecode", "greenlet", "pyee"),
    *("requests", "charset-normalizer", "certifi", "idna", "urllib3"),
)
"""Plugins of other projects, and the packages that these plugins import."""


@pytest.mark.slow
def test_an_installed_wheel_changes_nothing_in_other_projects(guest: Path) -> None:
    source, built, site, others = (guest / name for name in ("source", "built", "site", "others"))
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "runs", "tests", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheel = ("wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(built))
    subprocess.run([*pip, *wheel], check=True)
    into = ("install", "--no-deps", "--constraint", str(ROOT / "constraints.txt"), "--target")
    subprocess.run([*pip, *into, str(site), *built.iterdir()], check=True)
    subprocess.run([*pip, *into, str(others), *OTHER_PLUGINS], check=True)
    assert (site / "bvae/experiments/test_loss_options.py").exists()
    assert "pytest11" not in next(site.glob("*.dist-info/entry_points.txt")).read_text()
    shutil.rmtree(source)

    project = guest / "project"
    (project / "experiments").mkdir(parents=True)
    flags = [option.flag for option in options_of("pytest")]
    fixtures = "".join(f"@pytest.fixture\ndef {name}(): return 1\n" for name in ("loss_run", "loss_baseline"))
    (project / "conftest.py").write_text(
        f"import pytest\ndef pytest_addoption(parser):\n    for flag in {flags}: parser.addoption(flag)\n"
        f"def pytest_configure(config): config.addinivalue_line('markers', 'gate: ours')\n{fixtures}"
    )
    (project / "experiments/test_a.py").write_text(
        "import pytest\n@pytest.mark.gate\ndef test_a(loss_run, pytestconfig):\n"
        "    assert pytestconfig.getoption('beta')\ndef test_b(loss_baseline): pass\n"
    )
    (project / "experiments/test_b.py").write_text(
        "import pytest\n@pytest.mark.asyncio\nasync def test_coroutine(): pass\n"
    )
    ours = (
        "-p",
        "no:playwright",
        "--beta=1",
    )  # the conftest and pytest-playwright would both add the option --device
    theirs = ("--noconftest", "--device=iPhone 13", "experiments/test_b.py")
    for asked in (ours, theirs):
        said = []
        for path in (others, f"{others}{os.pathsep}{site}"):
            done = run_alone(str(path), "-v", "--strict-markers", "--randomly-seed=1", *asked, cwd=project)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "asyncio: mode" in done.stdout
            assert "Using --randomly-seed=1" in done.stdout
            said.append([line for line in done.stdout.splitlines() if " passed" not in line])
        assert said[0] == said[1]
    left = {path.name for path in project.iterdir()}
    assert left - {"__pycache__"} == {".pytest_cache", "conftest.py", "experiments"}
    asked = run_alone(str(site), *PACKAGED, "--collect-only", "-q", cwd=guest)
    assert "test_loss_options.py::test_loss_option[B-seed0]" in asked.stdout, asked.stdout + asked.stderr


@pytest.mark.slow
def test_the_packaged_experiment_runs_without_the_terminal_plugin(guest: Path) -> None:
    done = run_pytest(*PACKAGED, "-p", "no:terminal", "-n1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    assert (guest / "runs/latest/comparison/comparison.json").exists()


@pytest.mark.slow
def test_without_other_plugins_any_junit_family_has_the_properties(
    guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(guest / "none/summary.md"))
    junit = ("--junitxml=junit.xml", "-o", "junit_family=xunit2", "-o", "filterwarnings=error")
    done = run_pytest(*PACKAGED, "-p", "no:html", "-p", "no:xdist", *junit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 deselected, 1 xfailed, 1 warning" in done.stdout
    assert "The gate failed: no candidate is healthy" in done.stdout
    assert "EvidenceWarning: GITHUB_STEP_SUMMARY could not be written" in done.stdout
    properties = {each.get("name") for each in ElementTree.parse(guest / "junit.xml").iter("property")}
    assert properties >= {"verdict", "object_iou"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switched_off", "option", "package"),
    [("no:xdist", "-n2", "pytest-xdist"), ("no:html", "--self-contained-html", "pytest-html")],
)
def test_an_option_of_a_missing_plugin_is_refused_in_one_sentence(
    guest: Path, switched_off: str, option: str, package: str
) -> None:
    done = run_pytest(*PACKAGED, "-p", switched_off, option)
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        f"ERROR: {option} needs {package}, which is not active; install it, or remove the option, also from "
        "addopts: -o addopts='-p bvae.plugin'",
        "",
    ]


@pytest.mark.slow
def test_the_files_of_init_work_and_their_own_gate_is_reported_first(guest: Path) -> None:
    init = [sys.executable, "-m", "bvae", "init", "losses"]
    done = subprocess.run(init, capture_output=True, text=True, check=True)
    assert "Next: cd losses && pytest --html=report.html" in done.stdout
    again = subprocess.run(init, capture_output=True, text=True, check=False)
    assert again.returncode == 4
    assert "losses/pytest.ini exists already" in again.stderr.replace(", losses/options.toml", "")
    settings = (*SMALL[:-2], "--loss-options-file=options.toml", "--loss-options=D")
    done = run_pytest(*settings, "-n1", "--html=report.html", cwd=guest / "losses")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed" in done.stdout
    sentences = "The session's own gates failed: test_objects_are_found. The gate failed: no candidate"
    assert sentences in done.stdout
    assert "test_objects_are_found" in (guest / "losses/report.html").read_text()
    alone = run_pytest("--resume=runs/latest", "-n0", "-k", "test_objects_are_found", cwd=guest / "losses")
    assert "The session's own gates failed: test_objects_are_found." in alone.stdout
    assert "The gate " not in alone.stdout


@pytest.mark.unit
@pytest.mark.parametrize(
    ("verdict", "own", "gate_ran", "passed", "said"),
    [
        ("healthy", {}, True, True, "The gate passed: "),
        ("healthy", {"test_a": True, "test_b": True}, True, True, "The gate passed: "),
        (
            "healthy",
            {"test_a": True, "test_b": False},
            True,
            False,
            "The session's own gates failed: test_b. ",
        ),
        ("flooding", {"test_a": True}, True, False, "The gate failed: "),
        ("flooding", {"test_a": True}, False, True, "The session's own gates passed: test_a."),
        ("healthy", {"test_\x1b": False}, False, False, "The session's own gates failed: test_\\x1b."),
        ("flooding", {}, False, False, "The gate was not run. With the existing results, it would fail: "),
        ("healthy", {}, False, True, "The gate was not run. With the existing results, it would pass: "),
    ],
)
def test_the_first_sentence_reports_all_gates_that_were_run(
    tmp_path: Path, verdict: str, own: dict, gate_ran: bool, passed: bool, said: str
) -> None:
    config = ExperimentConfig(seeds=1, options=(LOSS_OPTIONS["B"],))
    found = compare(CORPUS, config, {"B": {0: result("B", 0, verdict)}}, REFERENCES)
    outcome = explain_outcome(found, own, gate_ran=gate_ran)
    assert (outcome[0], outcome[1][: len(said)]) == (passed, said)
    assert outcome[1] in to_terminal(found, (), own, gate_ran=gate_ran)
    assert all(name.isprintable() for name in outcome[1])


PROCESS = """
import signal, sys, threading, pytest
from signal import SIGALRM, SIGINT, SIGTERM
def handlers():
    return [sys.unraisablehook, *map(signal.getsignal, (SIGALRM, SIGINT, SIGTERM))]
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine)
before, statuses = handlers(), []
run = lambda: statuses.append(int(pytest.main(sys.argv[1:])))
run()
assert handlers() == before, handlers()
statuses.append(int(pytest.main([*sys.argv[1:], "--corpus=missing.npz"])))
assert handlers() == before, handlers()
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert handlers() == before, handlers()
print("statuses", *statuses)
"""


@pytest.mark.slow
def test_pytest_in_a_process_or_thread_restores_signal_handlers(guest: Path) -> None:
    command = [sys.executable, "-c", PROCESS, *PACKAGED, "-p", "no:hypothesispytest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "statuses 1 4 1" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_stopping_at_the_first_failure_is_no_interruption(guest: Path) -> None:
    done = run_pytest(*PACKAGED, "-n1", "-x")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stopping after 1 failures" in done.stdout
    assert "nterrupted" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_second_interruption_ends_at_once_and_says_how_to_resume(lab: Path) -> None:
    sabotage(lab, slow=0.3)
    with running(lab, "--corpus=corpus.npz", "--grid-size=8", "-n0") as process:
        wait_for((lab / "runs/latest/A-seed0/.begun").exists)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == pytest.ExitCode.INTERRUPTED
    said = (lab / "output.txt").read_text()
    assert "Resume with: pytest experiments/ --resume=" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_train_answers_sigterm_as_pytest_does(guest: Path) -> None:
    command = [sys.executable, "-m", "bvae", "train", "--corpus=atomic:2000", "--epochs", "50"]
    with (guest / "output.txt").open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for((guest / "runs/latest/B-seed0/metrics.jsonl").exists)
        process.terminate()
        assert process.wait(timeout=12) == 2
    finally:
        process.kill()
        process.wait()
    said = (guest / "output.txt").read_text()
    assert "Interrupted. Resume with: python -m bvae train --resume=" in said
    assert "Traceback" not in said
