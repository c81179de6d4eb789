"""The pages and the API over a study that was run: what they answer, and what they refuse."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from small_study import runner
from starlette.testclient import TestClient

from autotune import wiring
from autotune.domain.basics.errors import InputError
from autotune.web.app import bare_app, create_app
from autotune.web.security import ServeOptions
from autotune.wiring.reading import StudyReader

TOKEN = "0123456789abcdef-token"
BASE = "http://127.0.0.1"
Client = Callable[..., TestClient]


def client_of(folder: Path, **options: Any) -> TestClient:
    store = wiring.open_store(f"sqlite:///{folder}/studies.db")
    return TestClient(
        create_app(store, ServeOptions(**options)), base_url=BASE, raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def client(finished: Path) -> Iterator[TestClient]:
    with client_of(finished) as client:
        yield client


@pytest.fixture
def hostile(finished: Path, tmp_path: Path) -> Path:
    """A copy of the study in which names, lines and logs are markup, and an artifact is gone."""
    folder = tmp_path / "hostile"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("model", "home", "state"))
    evil = "<script>alert(1)</script>"
    with sqlite3.connect(folder / "studies.db") as database:
        database.execute(
            "UPDATE autotune_trials SET failure_line = ?, failure_class = ?, state = 'infeasible' "
            "WHERE number = 1",
            (evil, evil),
        )
        database.execute("UPDATE autotune_studies SET owner = ?", (evil,))
        database.execute("UPDATE autotune_trials SET command = ? WHERE number = 0", (evil,))
    database.close()
    log = folder / "studies-artifacts" / "logs" / "small" / "0000" / "server.log"
    log.write_text(f"{evil}\n\x1b[31mERROR red\x1b[0m\n" + "line\n" * 100_000)
    (log.parent / "away.log").symlink_to("/etc/passwd")
    return folder


def test_every_page_answers_and_points_at_nothing_elsewhere(client: TestClient) -> None:
    trials = client.get("/api/v1/studies/small/trials").json()["trials"]
    pages = ["/", "/compare", "/compare?a=small:0&b=small:1", "/compare?a=small&b=small", "/studies/small"]
    pages += [f"/studies/small/{part}" for part in ("trials", "trials?state=measured", "insight")]
    pages += [f"/studies/small/parts/{part}" for part in ("answers", "live")]
    pages += [f"/studies/small/trials/{trial['number']}" for trial in trials]
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200, page
        assert "http://" not in answer.text.replace("http://www.w3.org", ""), page
        assert "script-src 'self';" in answer.headers["content-security-policy"]
    study = client.get("/studies/small").text
    for shown in ("interactive", "bulk", "estimate", "Command that serves it", 'data-study="small"'):
        assert shown in study


def test_the_api_tells_what_the_command_tells(client: TestClient, finished: Path) -> None:
    told = json.loads(runner(finished)("recommend", "small", "--json").stdout)
    answer = client.get("/api/v1/studies/small/recommendation").json()
    assert answer["slas"] == told["slas"]
    assert answer["pending_launches"] == 0
    listed = client.get("/api/v1/studies").json()
    assert [s["study"] for s in listed["studies"]] == ["small"]
    assert listed["studies"][0]["trials"]["measured"] > 2
    assert client.get("/api/v1/studies/small").json()["file"]["name"] == "small"


def test_recommendations_are_found_by_model_hardware_and_sla(client: TestClient) -> None:
    def found(**asked: str) -> httpx.Response:
        return client.get("/api/v1/recommendation", params=asked)

    assert [s["name"] for s in found(model="model").json()["slas"]] == ["interactive", "bulk"]
    assert [s["name"] for s in found(model="model", sla="bulk").json()["slas"]] == ["bulk"]
    assert found(model="other").status_code == 404
    assert found(model="model", hardware="no such device").status_code == 404
    assert found(model="model", sla="none").status_code == 404


def test_an_unchanged_recommendation_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/api/v1/recommendation", params={"model": "model"})
    again = client.get(
        "/api/v1/recommendation", params={"model": "model"}, headers={"if-none-match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(
        "/api/v1/recommendation", params={"model": "model"}, headers={"if-none-match": '"another"'}
    )
    assert other.status_code == 200


def test_another_sla_is_scored_from_the_archive(client: TestClient) -> None:
    def scored(**sla: Any) -> dict[str, Any]:
        answer = client.post("/api/v1/studies/small/score", json={"sla": {"name": "mine", **sla}})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["slas"][0]
        return found

    assert scored(attainment=0.5, slos={"e2e": "10s"})["goodput_tok_per_s"] > 0
    strict = scored(slos={"ttft": "1us"})
    assert strict["trial"] is None
    assert strict["reason"] == "no configuration met mine at any measured load"


@pytest.mark.parametrize(
    "sla",
    [
        {"name": "x", "slos": {}},
        {"name": "x", "slos": {"ttft": "fast"}},
        {"name": "x", "slos": {"ttft": "9" * 400 + "s"}},
        {"name": "<b>", "slos": {"ttft": "1s"}},
        {"name": "x", "slos": {"ttft": "1s"}, "workload": "elsewhere"},
        {"name": "x", "slos": {"ttft": "1s"}, "attainment": 2},
        {"name": "x", "contract": "percentile", "slos": {"ttft": {"p5": "1s"}}},
        "DROP TABLE",
    ],
)
def test_malformed_slas_are_refused_with_a_reason(client: TestClient, sla: Any) -> None:
    answer = client.post("/api/v1/studies/small/score", json={"sla": sla})
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert "Traceback" not in answer.text


def test_pictures_follow_what_was_asked(client: TestClient) -> None:
    asked = {"measure": "device", "colour": "engine", "focus": "bulk"}
    figure = client.post("/api/v1/studies/small/picture", json=asked).json()["figure"]
    names = {trace["name"] for trace in figure["data"]}
    assert {"vllm", "Pareto front"} <= names
    slow = {"slas": [{"name": "mine", "slos": {"tpot": "50ms"}}]}
    moved = client.post("/api/v1/studies/small/picture", json=slow).json()["figure"]
    assert [shape["x0"] for shape in moved["layout"]["shapes"]] == [20]
    per_mw = client.post("/api/v1/studies/small/picture", json={}).json()["figure"]
    assert any("estimate" in note["text"] for note in per_mw["layout"]["annotations"])


@pytest.mark.parametrize(
    "path",
    [
        "/studies/..%2f..%2fetc%2fpasswd",
        "/studies/small%00",
        "/studies/" + "a" * 3000,
        "/studies/<script>",
        "/studies/nope",
        "/studies/small/trials/999",
        "/studies/small/trials/99999999999999999999",
        "/studies/small/trials/-1",
        "/studies/small/trials/0/log?file=../../../studies.db",
        "/studies/small/trials/0/log?file=%2Fetc%2Fpasswd",
        "/assets/../app.py",
        "/assets/%2e%2e/app.py",
        "/compare?a=../x:1&b=small:0",
        "/compare?a=small:1e9&b=small:0",
        "/?offset=-1",
        "/?offset=99999999999999999999",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in {404, 414, 422}, answer.status_code
    assert "<script>" not in answer.text
    assert "root:" not in answer.text


def test_markup_in_names_and_logs_stays_text(hostile: Path) -> None:
    with client_of(hostile) as client:
        for page in ("", "/trials", "/insight", "/trials/0", "/trials/1", "/trials/0/log"):
            answer = client.get(f"/studies/small{page}")
            assert answer.status_code == 200
            assert "<script>alert" not in answer.text
        log = client.get("/studies/small/trials/0/log")
        assert "&lt;script&gt;" in log.text
        assert "\x1b" not in log.text
        assert len(log.text) < 5_000_000
        later = client.get("/studies/small/trials/0/log", params={"find": "red"})
        assert "ERROR red" in later.text
        # A link among the logs leads out of the store.
        assert "away.log" not in client.get("/studies/small/trials/0").text
        assert client.get("/studies/small/trials/0/log?file=away.log").status_code == 404


def test_lost_artifacts_are_told_and_the_rest_is_shown(hostile: Path) -> None:
    for artifact in (hostile / "studies-artifacts" / "artifacts").iterdir():
        artifact.unlink()
    with client_of(hostile) as client:
        assert "could not be read" in client.get("/studies/small").text
        lost = client.get("/studies/small/trials/0")
        assert lost.status_code == 422
        assert "raw records are not there" in lost.text


def test_large_bodies_and_foreign_hosts_are_refused(client: TestClient) -> None:
    large = client.post("/api/v1/studies/small/score", content=b"x" * 70_000)
    assert large.status_code == 413
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"host": "localhost:8080"}).status_code == 200


def test_optunas_dashboard_reads_the_same_store_and_cannot_write(client: TestClient, finished: Path) -> None:
    assert "Optuna Dashboard" in client.get("/dashboard").text
    listed = client.get("/api/studies").json()["study_summaries"]
    assert [study["study_name"] for study in listed] == ["small"]
    refused = client.request("DELETE", f"/api/studies/{listed[0]['study_id']}", json={})
    assert refused.status_code == 403
    assert "allow-write" in refused.text
    with client_of(finished, allow_write=True) as writing:
        assert writing.request("DELETE", "/api/studies/12345", json={}).status_code != 403


def test_a_token_is_asked_for_everywhere_but_at_the_door(finished: Path) -> None:
    with client_of(finished, token=TOKEN) as client:
        for path in ("/api/v1/studies", "/metrics", "/dashboard", "/api/studies", "/studies/small"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        page = client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert client.post("/login", data={"token": "wrong"}).status_code == 401
        entered = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
        assert entered.status_code == 303
        assert TOKEN not in entered.headers["set-cookie"]
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert client.get("/studies/small").status_code == 200


def test_an_open_network_needs_a_token() -> None:
    with pytest.raises(InputError, match="no token is asked for"):
        ServeOptions(host="0.0.0.0").checked()
    with pytest.raises(InputError, match="characters"):
        ServeOptions(token="short").checked()
    assert ServeOptions(host="0.0.0.0", token=TOKEN).checked().token == TOKEN


def test_metrics_and_health(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    text = client.get("/metrics").text
    assert 'autotune_studies{status="finished"} 1.0' in text
    assert 'autotune_http_requests_total{method="GET",route="/healthz",status="200"}' in text


def test_an_empty_store_says_how_to_begin(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        assert "No study yet" in client.get("/").text
        assert client.get("/api/v1/studies").json() == {"total": 0, "offset": 0, "studies": []}


def test_a_report_is_one_file_that_needs_nothing(finished: Path) -> None:
    said = runner(finished)("report", "small", "-o", "report.html").stdout
    assert "report.html" in said
    text = (finished / "report.html").read_text()
    assert "Pareto front" in text
    assert 'src="' not in text.split("<script>", 1)[0]
    assert "connect-src" not in text
    runner(finished)("report", "none", code=2)
    runner(finished)("report", "small", "-o", "nowhere/report.html", code=2)


@contextmanager
def checked_app(folder: Path) -> Iterator[Any]:
    store = wiring.open_store(f"sqlite:///{folder}/studies.db")
    app = bare_app(StudyReader(store), ServeOptions())
    with TestClient(app):
        yield app


def test_the_api_keeps_its_openapi_contract(finished: Path) -> None:
    with checked_app(finished) as app:
        schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
        phases = (Phase.explicit, Phase.generate)
        quick = settings(
            max_examples=8,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        for operation in schema.get_all_operations():
            case_of = operation.ok().as_strategy()

            @quick
            @given(case=case_of)
            def holds(case: Any) -> None:
                if case.path_parameters and "study" in case.path_parameters and case.method != "DELETE":
                    case.path_parameters["study"] = "small"
                case.call_and_validate(excluded_checks=[positive_data_acceptance])

            holds()
