"""Priors: what they say, how far launches make them believed, and which trials come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Events, hardware, planner, study_spec
from hypothesis import given
from hypothesis import strategies as st
from model_facts import LLAMA_8B, LLAMA_70B, QWEN3_30B

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.adapters.search.aiconfigurator import AiconfiguratorPrior
from autotune.adapters.search.earlier_studies import earlier_studies
from autotune.adapters.store.catalog import SqlCatalog
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.judging.sla import Bounds, JointSla
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.models.model import ModelShape
from autotune.domain.search.choosing import ByCurve, Launch, next_point
from autotune.domain.search.prior import NotCovered, Prediction
from autotune.domain.search.roofline_prior import Footing, Promise, RooflinePrior
from autotune.domain.search.transfer import Earlier, Task, TransferPrior, Trial, distance
from autotune.domain.search.trust import Observed, learned
from autotune.domain.studies.events import Notice
from autotune.domain.studies.feasibility import Setting
from autotune.domain.studies.records import Purpose, StudyRow, StudyStatus, TrialRow, TrialState
from autotune.runs.candidates import MOST, Candidates
from autotune.runs.priors import Priors
from autotune.wiring.priors import Ground, priors_of
from autotune.wiring.store import open_store

SIZES = (1, 2, 4, 8, 16)
CONFIGS = [EngineConfig(engine="vllm", max_num_seqs=n) for n in SIZES]
DEFAULTS = EngineConfig(engine="vllm")


class Oracle:
    """Says what it was told to say."""

    def __init__(self, said: Mapping[str, float]) -> None:
        self._said = said

    def predict(self, config: EngineConfig) -> Prediction | NotCovered:
        value = self._said.get(config.key)
        return NotCovered("not told") if value is None else Prediction(source="o", objectives={"fast": value})


def row(number: int, config: EngineConfig, value: float, purpose: Purpose = Purpose.SEARCH) -> TrialRow:
    state = TrialState.MEASURED if value else TrialState.INFEASIBLE
    return TrialRow(
        study="s", number=number, purpose=purpose, state=state, config=config, objectives={"fast": value}
    )


def launched(said: Mapping[str, float], most: int = 5) -> list[int | None]:
    """``max_num_seqs`` of the launches of a search by one prior, the defaults first."""
    configs = [DEFAULTS, *CONFIGS]
    points = [config.words for config in configs]
    foresights = Priors({"o": Oracle(said)}, ["fast"]).foresee(configs)
    launches = [Launch(index=0, objectives=(TRUTH[DEFAULTS.key],))]
    while len(launches) < most:
        left = [k for k in range(len(configs)) if k not in {one.index for one in launches}]
        place = next_point(points, launches, foresights, among=left)
        launches.append(Launch(index=place, objectives=(TRUTH[configs[place].key],)))
    return [configs[one.index].max_num_seqs for one in launches]


TRUTH = {DEFAULTS.key: 2.5} | {config.key: float(n) for config, n in zip(CONFIGS, SIZES, strict=True)}


def test_a_right_prior_has_its_best_launched_in_order() -> None:
    assert launched({key: 3 * value for key, value in TRUTH.items()}) == [None, 16, 8, 4, 2]


def test_a_wrong_prior_costs_two_launches_and_is_not_followed() -> None:
    wrong = {key: 1 / value for key, value in TRUTH.items()}
    assert launched(wrong, most=3) == [None, 1, 2]
    assert 16 in launched(wrong, most=5)
    told, rows = Events(), [row(0, DEFAULTS, 2.5, Purpose.DEFAULTS)]
    rows += [row(k + 1, CONFIGS[k], float(SIZES[k])) for k in range(2)]
    Priors({"o": Oracle(wrong)}, ["fast"]).report(rows, told)
    assert any(isinstance(e, Notice) and "no better than chance" in e.text for e in told)


def test_a_foreseen_miss_is_picked_last() -> None:
    assert 16 not in launched({key: 0.0 if value > 8 else value for key, value in TRUTH.items()})


@given(st.floats(0.01, 100), st.lists(st.floats(0.1, 10), min_size=3, max_size=8))
def test_a_scale_is_learned_and_costs_no_agreement(scale: float, values: Sequence[float]) -> None:
    shown = learned("p", [Observed(scale * value, {"p": value}) for value in values])
    assert min(scale, 1) * 0.99 <= shown.scale <= max(scale, 1) * 1.01
    assert shown.agreement >= 0.5
    assert shown.error == pytest.approx(max(scale, 1 / scale))


VALUES = st.just(0.0) | st.floats(1e-6, 1e6)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=10))
def test_what_is_learned_is_always_sound(pairs: Sequence[tuple[float, float]]) -> None:
    shown = learned("p", [Observed(measured, {"p": predicted}) for predicted, measured in pairs])
    assert shown.scale > 0
    assert shown.spread > 0
    assert -1 <= shown.agreement <= 1


def test_the_better_of_two_priors_decides() -> None:
    values = {config.key: n for config, n in zip(CONFIGS, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True)}
    wrong = {key: value * exp(2 * (-1) ** k) for k, (key, value) in enumerate(values.items())}
    priors = Priors({"good": Oracle(values), "bad": Oracle(wrong)}, ["fast"])
    launches = [Launch(index=k, objectives=(values[CONFIGS[k].key],)) for k in range(3)]
    points = [config.words for config in CONFIGS]
    assert next_point(points, launches, priors.foresee(CONFIGS), among=[3, 4]) == 4


def test_the_roofline_predicts_more_of_an_hour_on_a_faster_gpu_and_nothing_for_an_sla_out_of_reach() -> None:
    table = read_accelerators()
    slas = [
        JointSla(name="fast", slos=Bounds.model_validate({"tpot": "50ms", "ttft": "5s"})),
        JointSla(name="never", slos=Bounds.model_validate({"tpot": "0.01ms"})),
    ]
    promises = [Promise(sla=sla, prompt_tokens=1000, output_tokens=300) for sla in slas]
    said = []
    for name in ("H100 SXM", "H200 SXM"):
        chip = table.find(name)
        assert chip is not None
        assert chip.performance is not None
        footing = Footing.of_accelerators(chip, chip.performance, PowerBasis.GPU)
        prediction = RooflinePrior(ModelShape.from_config(LLAMA_8B), footing, promises).predict(DEFAULTS)
        assert prediction.objectives["never"] == 0
        assert prediction.expected["fast"].power_w is not None
        assert prediction.expected["fast"].power_w <= chip.tdp_w
        said.append(prediction.expected["fast"].goodput_tok_per_s)
    assert said[0] < said[1]


def test_a_large_model_is_foreseen_to_gain_from_more_ranks_at_a_tight_sla() -> None:
    chip = read_accelerators().find("H100 SXM")
    assert chip is not None
    assert chip.performance is not None
    sla = JointSla(name="fast", slos=Bounds.model_validate({"tpot": "25ms"}))
    prior = RooflinePrior(
        ModelShape.from_config(LLAMA_70B),
        Footing.of_accelerators(chip, chip.performance, PowerBasis.PROVISIONED),
        [Promise(sla=sla, prompt_tokens=1000, output_tokens=300)],
    )
    values = {
        ranks: prior.predict(EngineConfig(engine="vllm", tensor_parallel=ranks)).objectives["fast"]
        for ranks in (1, 2, 8)
    }
    assert values[1] == values[2] == 0 < values[8]  # TP1 does not fit, TP2 is too slow


class Kernels:
    """An estimator: TPOT by ranks, plus a little for every request in the batch."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, model: str, system: str, **words: Any) -> Estimated:
        self.asked.append({"system": system, **words})
        if words["batch_size"] > 64:
            raise RuntimeError("OOM: does not fit\nmore")
        if words["tp_size"] == 3:
            raise RuntimeError("no data for 3 ranks")
        return Estimated(ttft=100.0, tpot=40.0 / words["tp_size"] + words["batch_size"] / 10)


@dataclass
class Estimated:
    ttft: float
    tpot: float
    power_w: float | None = None
    backend_version: str = "1.2"


def kernels(chip: str) -> tuple[Kernels, AiconfiguratorPrior]:
    estimator, found = Kernels(), read_accelerators().find(chip)
    assert found is not None
    sla = JointSla(name="fast", slos=Bounds.model_validate({"tpot": "50ms"}))
    promises = [Promise(sla=sla, prompt_tokens=1000, output_tokens=300)]
    shape = ModelShape.from_config(QWEN3_30B)
    prior = AiconfiguratorPrior(estimator, "m", shape, found, promises, basis=PowerBasis.PROVISIONED)
    return estimator, prior


def test_measured_kernels_are_asked_for_every_batch_until_one_does_not_fit() -> None:
    estimator, prior = kernels("H200 SXM")
    said = prior.predict(EngineConfig(engine="vllm", tensor_parallel=2, expert_parallel=True))
    assert isinstance(said, Prediction)
    assert said.expected["fast"].tpot_s == pytest.approx(0.0264)
    assert said.expected["fast"].goodput_tok_per_s == pytest.approx(64 * 300 / (0.1 + 300 * 0.0264))
    assert said.expected["fast"].power_w == pytest.approx(2 * 1370)
    assert [asked["batch_size"] for asked in estimator.asked] == [1, 2, 4, 8, 16, 32, 64, 128]
    last = estimator.asked[-1]
    assert (last["moe_ep_size"], last["moe_tp_size"], last["backend_version"]) == (2, 1, "1.2")
    prior.predict(EngineConfig(engine="vllm", tensor_parallel=2, expert_parallel=True, block_size=32))
    assert len(estimator.asked) == 8


@pytest.mark.parametrize(
    ("chip", "words", "why"),
    [
        ("MI300X", {}, "no measurements of MI300X"),
        ("H200 SXM", {"speculation": "ngram"}, "speculation"),
        ("H200 SXM", {"decode": {"workers": 2}}, "pools"),
        ("H200 SXM", {"tensor_parallel": 3}, "no data for 3 ranks"),
    ],
)
def test_measured_kernels_say_what_they_do_not_cover(chip: str, words: dict[str, Any], why: str) -> None:
    said = kernels(chip)[1].predict(EngineConfig.model_validate({"engine": "vllm", **words}))
    assert isinstance(said, NotCovered)
    assert why in said.why


def earlier(*values: float, model: str = "m") -> Earlier:
    trials = tuple(Trial(config, value) for config, value in zip(CONFIGS, values, strict=True))
    return Earlier(Task(model=model, device="d"), trials)


def test_earlier_studies_rank_configurations_however_fast_their_machine_was() -> None:
    here = Task(model="other", device="d")
    for factor in (1, 1000):
        prior = TransferPrior(here, [earlier(*(factor * n for n in SIZES))], ["fast"])
        said = [prior.predict(config) for config in CONFIGS]
        values = [p.objectives["fast"] for p in said if isinstance(p, Prediction)]
        assert values == sorted(values)
        assert len(set(values)) == len(CONFIGS)


def test_the_study_with_more_in_common_outvotes_the_other() -> None:
    here = Task(model="m", device="d")
    prior = TransferPrior(here, [earlier(*SIZES), earlier(*SIZES[::-1], model="other")], ["fast"])
    first, last = (prior.predict(config) for config in (CONFIGS[0], CONFIGS[-1]))
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert first.objectives["fast"] < last.objectives["fast"]


def test_nothing_is_said_of_what_no_earlier_study_is_near_to() -> None:
    far = EngineConfig(engine="vllm", tensor_parallel=8, eager=True, kv_cache_dtype="fp8", dtype="float16")
    prior = TransferPrior(Task(model="m", device="d"), [earlier(*SIZES)], ["fast"])
    assert isinstance(prior.predict(far), NotCovered)
    assert isinstance(TransferPrior(Task(model="m", device="d"), [], ["fast"]).predict(DEFAULTS), NotCovered)


@given(st.sampled_from(CONFIGS), st.sampled_from([*CONFIGS, DEFAULTS]))
def test_distance_is_symmetric_and_none_to_itself(one: EngineConfig, other: EngineConfig) -> None:
    assert distance(one, other) == distance(other, one) >= 0
    assert (distance(one, other) == 0) == (one == other)


def test_studies_of_the_catalog_are_read_as_earlier_tasks(tmp_path: Path) -> None:
    catalog = SqlCatalog(f"sqlite:///{tmp_path}/studies.db")
    try:
        done = StudyStatus.FINISHED
        for name in ("before", "now"):
            spec = study_spec(name=name, model=f"model of {name}").model_dump_json()
            catalog.put_study(
                StudyRow(name=name, spec=spec, status=done, owner="", spent_s=1.0, started_at="2026")
            )
            for number, config in enumerate(CONFIGS):
                catalog.put(replace(row(number, config, float(number)), study=name))
        catalog.put_study(
            StudyRow(name="old", spec="{}", status=done, owner="", spent_s=1.0, started_at="2020")
        )
        for number, config in enumerate(CONFIGS):
            catalog.put(replace(row(number, config, float(number)), study="old"))
        found = earlier_studies(catalog, "now", lambda name, number: f"device of {name} {number}")
        assert [each.task for each in found] == [Task(model="model of before", device="device of before 1")]
        assert [trial.objective for trial in found[0].trials] == [0, 0.25, 0.5, 0.75, 1]
    finally:
        catalog.close()


def ground(tmp_path: Path, shape: ModelShape | None) -> Ground:
    study = study_spec(seed=3)
    setting = Setting(
        hardware=Hardware(
            DeviceKind.CUDA,
            tuple(
                Device(kind=DeviceKind.CUDA, index=n, name="NVIDIA H200", uid=str(n), memory_bytes=140 << 30)
                for n in range(8)
            ),
        ),
        model=shape,
        requirements=study.requirements,
        longest_request_tokens=13,
    )
    return Ground(
        study=study,
        setting=setting,
        basis=PowerBasis.PROVISIONED,
        plan=planner(study),
        store=open_store(f"sqlite:///{tmp_path}/studies.db"),
    )


def on_cores(tmp_path: Path, program: str, **changes: Any) -> Ground:
    """Two cores, and an engine whose interpreter runs ``program`` whatever it is asked."""
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir(exist_ok=True)
    interpreter.write_text(f"#!/bin/sh\n{program}\n")
    interpreter.chmod(0o755)
    known = ground(tmp_path, ModelShape.from_config(LLAMA_8B))
    cores = tuple(
        Device(kind=DeviceKind.CPU, index=n, name="x", uid=str(n), memory_bytes=32 << 30) for n in range(2)
    )
    changes = {"basis": PowerBasis.NONE, "executables": (interpreter.with_name("engine"),), **changes}
    return replace(known, setting=replace(known.setting, hardware=Hardware(DeviceKind.CPU, cores)), **changes)


def test_a_study_on_known_gpus_has_the_roofline(tmp_path: Path) -> None:
    told = Events()
    with_roofline = ground(tmp_path, ModelShape.from_config(LLAMA_8B))
    priors = priors_of(with_roofline, told)
    assert not told
    config = with_roofline.study.default_config()
    assert set(priors.predicted(config)) == {"fast", "slow"}
    fast, slow = priors.foresee([config])
    assert isinstance(fast["roofline"], ByCurve)
    assert isinstance(slow["roofline"], ByCurve)
    with_roofline.store.catalog.close()


SLOW_IN_16_BITS = 'echo \'{"torch": "2.13", "tflops": {"32": 8, "16": 1}, "memory_gb_s": 2000}\''


def test_a_study_on_cores_foresees_by_what_a_core_was_measured_to_do(tmp_path: Path) -> None:
    told = Events()
    cores = on_cores(tmp_path, f"echo a warning; {SLOW_IN_16_BITS}")
    priors = priors_of(cores, told)
    assert not told
    defaults = EngineConfig(engine="vllm")
    fast = [
        priors.predicted(defaults.replaced(words))["slow"]
        for words in ({"dtype": "float32"}, {}, {"tensor_parallel": 2})
    ]
    assert fast[0] > 2 * fast[1]
    assert fast[1] > fast[2] > 0  # two ranks share what one has alone
    cores.store.catalog.close()


@pytest.mark.parametrize(
    ("program", "changes", "why"),
    [
        ("echo No module named torch >&2; exit 1", {}, "could not measure a core: No module named torch"),
        ("echo hello", {}, "measured a core and answered 'hello'"),
        ("true", {"executables": (Path("engine"),)}, "no engine of this machine is there to measure a core"),
        ("true", {"basis": PowerBasis.HOST}, "nothing is foreseen of the watts of cores"),
    ],
)
def test_a_study_on_cores_says_why_it_has_no_roofline(
    tmp_path: Path, program: str, changes: dict[str, Any], why: str
) -> None:
    told = Events()
    cores = on_cores(tmp_path, program, **changes)
    assert priors_of(cores, told).foresee([cores.study.default_config()]) == [{}, {}]
    (notice,) = told
    assert notice.text.startswith("no prior roofline: ")
    assert why in notice.text
    cores.store.catalog.close()


def test_a_roofline_promises_at_an_sla_what_its_curve_does_there(tmp_path: Path) -> None:
    known = ground(tmp_path, ModelShape.from_config(LLAMA_8B))
    priors = priors_of(known, Events())
    configs = [known.study.default_config().replaced({"max_num_seqs": n}) for n in (2, 8, 64)]
    for sla, foreseen in zip(("fast", "slow"), priors.foresee(configs), strict=True):
        told = [priors.predicted(config)[sla] for config in configs]
        # One is read off powers of two, the other bisected.
        headroom = known.study.measurement.headroom
        assert np.exp(foreseen["roofline"].expected) * headroom == pytest.approx(told, rel=0.1)
    known.store.catalog.close()


def test_of_a_large_space_what_is_near_the_defaults_and_some_more_is_looked_at() -> None:
    dimensions = {"max_num_seqs": {"low": 1, "high": 5000}, "tensor_parallel": [1, 2], "eager": [False, True]}
    study = study_spec(space={"dimensions": dimensions})
    setting = Setting(
        hardware=hardware(2), model=None, requirements=study.requirements, longest_request_tokens=13
    )
    drawn = Candidates(study, setting).around([])
    assert drawn == Candidates(study, setting).around([])
    assert MOST / 2 < len(drawn) <= MOST
    best = study.branches[0].config_at({"max_num_seqs": 777, "tensor_parallel": 1, "eager": False})
    near = Candidates(study, setting).around([best])
    assert best.replaced({"tensor_parallel": 2}) in near
    assert best.replaced({"max_num_seqs": 778}) in near


def test_a_study_whose_archive_is_gone_still_teaches(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/studies.db")
    spec = study_spec(name="before").model_dump_json()
    done = StudyStatus.FINISHED
    store.catalog.put_study(
        StudyRow(name="before", spec=spec, status=done, owner="", spent_s=1.0, started_at="2026")
    )
    for number, size in enumerate((4, 8, 16)):
        config = EngineConfig(engine="fake", max_num_seqs=size)
        store.catalog.put(replace(row(number, config, float(size)), study="before"))
    priors = priors_of(ground(tmp_path, None), Events())
    configs = [EngineConfig(engine="fake", max_num_seqs=size) for size in (4, 8, 16)]
    fast, _ = priors.foresee(configs)
    assert fast["transfer"].relative
    assert np.argmax(fast["transfer"].expected) == 2
    assert priors.predicted(configs[0]) == {}
    store.catalog.close()
