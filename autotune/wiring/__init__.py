"""Chooses the concrete classes: from a study file and a storage URL to a study that runs."""

from autotune.wiring.bench import basis_for, bench_for, planner_for, traffic_of
from autotune.wiring.engines import environment_for, hardware_for, launcher_of, launchers, paper_context
from autotune.wiring.store import DEFAULT_STORAGE, Store, launch_record, open_store, results
from autotune.wiring.studies import SPACES, baseline_config, load_study, setting_for, tune

__all__ = [
    "DEFAULT_STORAGE",
    "SPACES",
    "Store",
    "baseline_config",
    "basis_for",
    "bench_for",
    "environment_for",
    "hardware_for",
    "launch_record",
    "launcher_of",
    "launchers",
    "load_study",
    "open_store",
    "paper_context",
    "planner_for",
    "results",
    "setting_for",
    "traffic_of",
    "tune",
]
