"""The packaged experiment: train each loss option with each seed, draw pictures, judge, and gate.

pytest -p bvae.plugin --pyargs bvae.experiments --html=report.html

Your own project imports these tests into a test file, see docs/own-project.md.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bvae.experiment import Experiment, Selection
from bvae.judging.baseline import Baseline, explain_regressions
from bvae.report.text import explain_gate

Attach = Callable[[list[str]], None]


def test_loss_option(
    loss_run: Selection, laboratory: Experiment, attach_html: Attach, request: pytest.FixtureRequest
) -> None:
    """Train and judge one run. A run that is not healthy is an expected failure (xfailed), not an error."""
    result = laboratory.obtain(loss_run)
    # The fixture record_property does the same, but warns if the JUnit family is xunit2.
    request.node.user_properties.extend(result.properties().items())
    attach_html(laboratory.show_run(result))
    reason = f"{result.verdict}: {result.reason}"
    if result.verdict != "healthy":
        pytest.xfail(reason)
    assert result.verdict == "healthy", reason


@pytest.mark.gate
def test_stable_option_exists(laboratory: Experiment, attach_html: Attach) -> None:
    """The gate: at least one candidate is stable, learned the objects, and has an accuracy in the band."""
    comparison = laboratory.compare()
    attach_html(laboratory.show_comparison(comparison))
    passed, explanation = comparison.gate.passed, explain_gate(comparison)
    assert passed, explanation


@pytest.mark.gate
def test_no_regression(
    loss_baseline: Baseline, laboratory: Experiment, pytestconfig: pytest.Config, attach_html: Attach
) -> None:
    """With --baseline: no metric got worse by more than the noise between the seeds."""
    differences = laboratory.compare_with_baseline()
    attach_html(laboratory.show_differences(differences))
    regressions = explain_regressions(differences)
    if regressions and not pytestconfig.getoption("fail_on_regression"):
        pytest.xfail(regressions)
    assert not regressions, regressions
