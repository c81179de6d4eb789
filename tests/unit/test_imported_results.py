"""Results of other tools come in as observations: unranked, once, and never half-read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.adapters.files.imported_results import read_results
from autotune.adapters.store.catalog import SqlCatalog
from autotune.domain.basics.errors import InputError
from autotune.domain.studies.observations import Observation, observations_document

DATA = Path(__file__).parents[1] / "data" / "imported"


def test_vllm_bench_serve_as_it_was_written() -> None:
    (found,) = read_results(DATA / "vllm_bench_rate.json")
    assert (found.tool, found.model, found.load) == ("vllm bench serve", "tiny-dense", "20 req/s")
    assert (found.requests, found.failed) == (60, 0)
    assert found.throughput_rps == pytest.approx(19.63, abs=0.01)
    assert found.output_tok_per_s == pytest.approx(314.1, abs=0.1)
    assert found.ttft_s == pytest.approx({"p50": 0.02919, "p95": 0.04174, "p99": 0.04435}, abs=1e-5)
    assert found.interactivity == pytest.approx(500, rel=0.01)
    (closed,) = read_results(DATA / "vllm_bench_concurrent.json")
    assert closed.load == "4 concurrent"


def test_aiperf() -> None:
    (found,) = read_results(DATA / "aiperf.json")
    assert (found.tool, found.model, found.load) == ("AIPerf 0.13.0", "tiny-dense", "20 req/s")
    assert (found.requests, found.failed, found.duration_s) == (60, 1, 3.1)
    assert found.ttft_s["p99"] == pytest.approx(0.044)
    assert found.tpot_s["p50"] == pytest.approx(0.002)
    assert found.e2e_s["p90"] == pytest.approx(0.066)


def test_guidellm_has_a_run_for_each_load() -> None:
    found = read_results(DATA / "guidellm.json")
    assert [each.load for each in found] == ["20 req/s", "4 concurrent"]
    assert [each.output_tok_per_s for each in found] == [320, 640]
    assert found[0].e2e_s["p50"] == pytest.approx(0.059)
    assert found[0].key != found[1].key


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "of no tool"),
        ('{"benchmarks": []}', "holds no run"),
        ('{"benchmarks": [{}]}', "not as that tool writes it: KeyError: 'metrics'"),
        (
            '{"request_throughput": {}, "request_latency": {"unit": "fortnight"}}',
            "'fortnight' of a latency is not known",
        ),
        (
            '{"backend": 1, "request_throughput": "x", "output_throughput": 1, "completed": 1}',
            "could not convert string to float",
        ),
    ],
)
def test_what_is_no_result_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        read_results(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def test_the_catalog_keeps_each_run_once(tmp_path: Path) -> None:
    catalog = SqlCatalog(f"sqlite:///{tmp_path}/studies.db")
    found = [*read_results(DATA / "guidellm.json"), *read_results(DATA / "aiperf.json")]
    for _ in range(2):
        for each in found:
            catalog.put_observation("one", each)
    kept = catalog.observations("one")
    assert sorted(kept, key=lambda o: o.key) == sorted(found, key=lambda o: o.key)
    assert catalog.observations("other") == ()
    document = json.loads(json.dumps(observations_document(kept)))
    assert [each["ranked"] for each in document] == [False] * 3
    assert isinstance(kept[0], Observation)
    catalog.close()
