"""What a study has spent, by whatever its devices are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.domain.configs.config import EngineConfig
from autotune.domain.studies import budget
from autotune.domain.studies.records import Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec


def study(engine: dict[str, str], hardware: dict[str, int], **more: object) -> StudySpec:
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
            **more,
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


def test_a_final_that_fills_the_node_costs_the_node() -> None:
    whole = study({"name": "e"}, {"gpus": 8}, fill_node=True)
    search = row(tensor_parallel=2)
    final = replace(search, purpose=Purpose.FINAL)
    assert budget.spent([search], whole, 0.0).device_s == 200.0
    assert budget.spent([final], whole, 0.0).device_s == 800.0
    alone = study({"name": "e"}, {"gpus": 8})
    assert budget.finals([search], whole, 1).device_s == 4 * budget.finals([search], alone, 1).device_s
    # Three devices each: two of eight are left idle, as they will be in service.
    assert whole.copies(row(tensor_parallel=3).config, Purpose.FINAL) == 2
    assert (
        study({"name": "e", "url": "http://x"}, {"gpus": 8}, fill_node=True).copies(
            row().config, Purpose.FINAL
        )
        == 1
    )


def test_a_node_of_unknown_size_cannot_be_filled() -> None:
    with pytest.raises(ValueError, match=r"hardware: \{ gpus: 8 \}"):
        study({"name": "e"}, {}, fill_node=True)
