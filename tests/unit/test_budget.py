"""What a study has spent, by whatever its devices are."""

from __future__ import annotations

import pytest

from autotune.domain.configs.config import EngineConfig
from autotune.domain.studies import budget
from autotune.domain.studies.records import Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec


def study(engine: dict[str, str], hardware: dict[str, int]) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "model": "m",
            "engines": [engine],
            "hardware": hardware,
            "workloads": [{"name": "chat", "input_tokens": 8, "output_tokens": 8}],
            "slas": [{"name": "fast", "attainment": 0.9, "slos": {"ttft": "1s"}}],
            "space": {"dimensions": {"tensor_parallel": ["default", 2]}},
            "budget": {"accelerator_hours": 1},
        }
    )


def row(**words: object) -> TrialRow:
    return TrialRow(
        study="s",
        number=0,
        purpose=Purpose.SEARCH,
        state=TrialState.MEASURED,
        config=EngineConfig.model_validate({"engine": "e", **words}),
        launch_s=10.0,
        total_s=100.0,
    )


@pytest.mark.parametrize(
    ("engine", "hardware", "words", "devices"),
    [
        ({"name": "e"}, {"gpus": 8}, {"tensor_parallel": 2}, 2),
        ({"name": "e", "url": "http://x"}, {"gpus": 8}, {}, 8),
        ({"name": "e", "url": "http://x"}, {}, {}, 1),
    ],
)
def test_a_launch_costs_the_devices_that_it_holds(
    engine: dict[str, str], hardware: dict[str, int], words: dict[str, object], devices: int
) -> None:
    spec, rows = study(engine, hardware), [row(**words)]
    assert budget.spent(rows, spec, 100.0).device_s == 100.0 * devices
    assert budget.next_launch(rows, spec).device_s == 100.0 * devices
    final = budget.finals(rows, spec, 1)
    assert final.device_s == final.wall_s * devices > 0
