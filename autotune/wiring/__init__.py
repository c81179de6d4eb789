"""Chooses the concrete classes: from a study file and a storage URL to a study that runs."""

from autotune.wiring.bench import basis_for, benches_for, planner_for, traffic_of
from autotune.wiring.engines import (
    EngineStatus,
    engine_statuses,
    environment_for,
    hardware_for,
    launcher_of,
    launchers,
    paper_context,
)
from autotune.wiring.recipes import WrittenRecipe, written_recipes
from autotune.wiring.recommendations import deployment_for, device_kind, for_dynamo, recommended, studied
from autotune.wiring.store import (
    DEFAULT_STORAGE,
    Results,
    Store,
    launch_record,
    open_store,
    read_store,
    results,
    versions_run,
)
from autotune.wiring.studies import SPACES, baseline_config, load_study, setting_for, tune
from autotune.wiring.verification import VerifyOrder, run_verification

__all__ = [
    "DEFAULT_STORAGE",
    "SPACES",
    "EngineStatus",
    "Results",
    "Store",
    "VerifyOrder",
    "WrittenRecipe",
    "baseline_config",
    "basis_for",
    "benches_for",
    "deployment_for",
    "device_kind",
    "engine_statuses",
    "environment_for",
    "for_dynamo",
    "hardware_for",
    "launch_record",
    "launcher_of",
    "launchers",
    "load_study",
    "open_store",
    "paper_context",
    "planner_for",
    "read_store",
    "recommended",
    "results",
    "run_verification",
    "setting_for",
    "studied",
    "traffic_of",
    "tune",
    "versions_run",
    "written_recipes",
]
