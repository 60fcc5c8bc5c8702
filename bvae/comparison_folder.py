"""The `comparison/` folder of a session: what its runs say together, as data, as text and as pictures.

comparison/
  why_A.png …  curves.png  reconstructions.png  examples.png  comparison.md
  comparison.json                               written last: its presence means complete
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from bvae.corpus import Corpus
from bvae.judging.baseline import Baseline
from bvae.judging.comparison import Comparison, OptionOutcomes, RunOutcomes, compare
from bvae.judging.regression import compare_with
from bvae.records import ControlledMetrics
from bvae.report.text import to_markdown
from bvae.session import Session
from bvae.session.run_folder import read_result
from bvae.storage import atomic_write, make_folder, read_json, to_json


def found_outcomes(session: Session) -> RunOutcomes:
    """The result of each run that was begun in a session folder, as it lies there; nothing is trained."""
    outcomes: RunOutcomes = {}
    config = session.record.config
    for option in config.options:
        for seed in range(config.seeds):
            directory = session.path / session.run_config(option, seed).name
            if (result := read_result(directory)) is not None:
                outcomes.setdefault(option.name, {})[seed] = result
            elif directory.exists():
                outcomes.setdefault(option.name, {})[seed] = f"{directory.name} was begun and did not finish"
    return outcomes


def compare_outcomes(
    session: Session,
    outcomes: RunOutcomes,
    references: Mapping[str, ControlledMetrics] = MappingProxyType({}),
) -> Comparison:
    """Compare the runs of a session, and write nothing."""
    return compare(session.record.corpus, session.record.config, outcomes, references)


def write_why(session: Session, option: str, outcomes: OptionOutcomes) -> None:
    """Write why an option predicts what it predicts, once its runs are over. Raises StorageError."""
    from bvae.session.pictures import draw_why  # matplotlib, which the controller of workers lacks

    folder = comparison_folder(session)
    make_folder(folder)
    (summary,) = compare_outcomes(session, {option: outcomes}).options.values()
    atomic_write(folder / f"why_{option}.png", draw_why(session, option, summary))


def write_comparison(
    session: Session,
    corpus: Corpus,
    outcomes: RunOutcomes,
    baseline: Baseline | None = None,
    *,
    in_haste: bool = False,
) -> Comparison:
    """Compare the runs and write the rest of the folder; in haste, without references, which take seconds.

    Raises:
        StorageError: where a file cannot be written.
    """
    from bvae.evaluation.controls import references
    from bvae.session.pictures import draw_curves, draw_examples, draw_reconstructions

    known = {} if in_haste else references(corpus, session.record.config.training.latent_dim)
    comparison = compare_outcomes(session, outcomes, known)
    differences = compare_with(baseline, comparison)
    folder = comparison_folder(session)
    make_folder(folder)
    atomic_write(folder / "curves.png", draw_curves(session, comparison))
    atomic_write(folder / "reconstructions.png", draw_reconstructions(session, corpus, comparison))
    if (examples := draw_examples(session, corpus, comparison)) is not None:
        atomic_write(folder / "examples.png", examples)
    atomic_write(folder / "comparison.md", to_markdown(comparison, differences).encode())
    atomic_write(folder / "comparison.json", to_json(comparison))
    return comparison


def read_comparison(session: Session) -> Comparison | None:
    """The comparison of a session, None before it is complete."""
    path = comparison_folder(session) / "comparison.json"
    return read_json(path, Comparison) if path.exists() else None


def discard_comparison(session: Session) -> None:
    """Say that the comparison of a session is no longer complete, since runs are to be added."""
    (comparison_folder(session) / "comparison.json").unlink(missing_ok=True)


def comparison_folder(session: Session) -> Path:
    """Where the comparison of a session lies."""
    return session.path / "comparison"
