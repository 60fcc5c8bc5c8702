"""A pytest plugin that measures the seconds of an experiment outside its training steps.

Each process writes its sums to a separate file in the folder `$BVAE_STOPWATCH`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

WATCHED = {
    "evaluation": ("bvae.evaluation.measure:Evaluator.__init__", "bvae.evaluation.measure:Evaluator.measure"),
    "checkpoints": ("bvae.trainer:save_checkpoint",),
    "pictures": (
        "bvae.session.listeners:plot_reconstructions",
        "bvae.session.listeners:plot_filmstrip",
        "bvae.session.listeners:png_of",
    ),
    "comparison and report": (
        "bvae.engine:write_why",
        "bvae.engine:write_comparison",
        "bvae.report.html:report_head",
        "bvae.report.html:show_run",
        "bvae.report.html:show_gate",
    ),
}

_spent = dict.fromkeys(WATCHED, 0.0)


def _watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            _spent[name] += time.perf_counter() - started

    return timed


def pytest_sessionstart() -> None:
    for name, places in WATCHED.items():
        for place in places:
            module, _, path = place.partition(":")
            if not (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
                raise ModuleNotFoundError(f"the stopwatch watches {place}, but there is no module {module}")
            # Only watch loaded modules: importing PyTorch here would add a second to the controller.
            if (found := sys.modules.get(module)) is not None:
                *owners, attribute = path.split(".")
                owner = functools.reduce(getattr, owners, found)
                setattr(owner, attribute, _watched(name, getattr(owner, attribute)))


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = Path(os.environ["BVAE_STOPWATCH"])
    (folder / f"{os.getpid()}.json").write_text(json.dumps(_spent))
