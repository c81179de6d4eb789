"""Study files: a mistake is one problem, at its line, with a remedy; what is sound survives storing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes import hardware
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.files.study_file import (
    SourceFile,
    check_against_hardware,
    read_slas,
    read_study,
    study_schema,
)
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.studies.study import StudySpec

SPACES = Path(__file__).parents[2] / "search_spaces"
QUICKSTART = SPACES / "quickstart.yaml"

SOUND = """\
model: some/model
engines:
  - name: vllm
    fixed:
      context_length: 2048
workloads:
  - name: chat
    input_tokens: 64
    output_tokens: { median: 32, sigma: 0.5, high: 128 }
slas:
  - name: fast
    slos:
      ttft: 200ms
  - name: slow
    contract: percentile
    slos:
      ttft: { p95: 2s }
space:
  dimensions:
    max_num_seqs: [default, 4, 8]
    speculation: [default, ngram]
    speculative_tokens:
      low: 2
      high: 4
      when:
        speculation: ngram
try_first:
  - max_num_seqs: 8
budget:
  launches: 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.yaml"


def problems(path: Path, text: str) -> list[InputProblem]:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_study(path, SPACES)
    return list(caught.value.problems)


def changed(old: str, new: str) -> str:
    """The sound file with one place changed, which must be there once."""
    assert SOUND.count(old) == 1, old
    return SOUND.replace(old, new)


def test_the_file_that_mistakes_are_made_in_is_sound(path: Path) -> None:
    path.write_text(SOUND)
    assert read_study(path, SPACES).name == "study"


SCHEMA = "`autotune schema` shows what may stand here"
# The sound text, what takes its place; then the line, the start and the remedy of the one problem.
MISTAKES = [
    # Unknown keys.
    ("model: some", "modle: some", 1, "modle: unknown key", "did you mean 'model'?"),
    ("- name: vllm", "- name: vllm\n    arg: [--x]", 4, "engines.0.arg: unknown key", "'args'"),
    ("input_tokens:", "input_token:", 8, "workloads.0.input_token: unknown key", "'input_tokens'"),
    ("high: 128", "hihg: 128", 9, "workloads.0.output_tokens.hihg: unknown key", "'high'"),
    ("- name: fast", "- name: fast\n    atainment: 0.9", 12, "slas.0.atainment: unknown key", "'attainment'"),
    ("ttft: 200ms", "tfft: 200ms", 13, "slas.0.slos.tfft: unknown key", "did you mean 'ttft'?"),
    (
        "contract: percentile",
        "contract: percentile\n    attainment: 0.9",
        16,
        "slas.1.attainment: unknown key",
        "known here: contract, name, slos, workload",
    ),
    ("  dimensions:", "  dimension:", 19, "space.dimension: unknown key", "'dimensions'"),
    ("max_num_seqs: [", "max_num_seq: [", 20, "space.dimensions.max_num_seq: unknown key", "'max_num_seqs'"),
    ("      low: 2", "      lwo: 2", 23, "space.dimensions.speculative_tokens.lwo: unknown key", "'low'"),
    (
        "context_length: 2048",
        "contxt_length: 2048",
        5,
        "engines.0.fixed.contxt_length: unknown key",
        "'context_length'",
    ),
    ("- max_num_seqs: 8", "- max_seqs: 8", 28, "try_first.0.max_seqs: unknown key", "'max_num_seqs'"),
    ("launches: 3", "launchs: 3", 30, "budget.launchs: unknown key", "'launches'"),
    ("launches: 3", "launches: 3\nzzz: 3", 31, "zzz: unknown key", "known here: at_once, baseline, budget"),
    # Missing ones.
    ("model: some/model\n", "", 1, "model: is missing", "add `model:`"),
    ("- name: fast\n    slos", "- slos", 11, "slas.0.name: is missing", "add `name:`"),
    ("      high: 4\n", "", 22, "space.dimensions.speculative_tokens.high: is missing", "add `high:`"),
    ("budget:\n  launches: 3\n", "", 1, "budget: is missing", "add `budget:`"),
    ("  launches: 3", "  launches:", 29, "budget: a budget needs a bound", "launches, wall_time"),
    ("ttft: 200ms", "ttft:", 12, "slas.0.slos: an SLA needs at least one SLO", "ttft, tpot"),
    # Units and values.
    ("ttft: 200ms", "ttft: 200", 13, "slas.0.slos.ttft: 200 is no duration", "500ms, 2s"),
    ("ttft: 200ms", "ttft: 5 bananas", 13, "slas.0.slos.ttft: '5 bananas' is no duration", "500ms, 2s"),
    ("p95: 2s", "p95: 2", 17, "slas.1.slos.ttft.p95: 2 is no duration", "500ms"),
    ("launches: 3", "wall_time: 12", 30, "budget.wall_time: 12 is no duration", "12m"),
    ("ttft: 200ms", "ttft: 0s", 13, "slas.0.slos.ttft: should be greater than 0, not '0s'", SCHEMA),
    (
        "launches: 3",
        "launches: 3\nmeasurement:\n  window: 0s",
        32,
        "measurement.window: should be greater than 0",
        SCHEMA,
    ),
    ("p95: 2s", "95: 2s", 17, "slas.1.slos.ttft.95: 95 is no percentile", "p50, p90"),
    ("p95: 2s", "p100: 2s", 17, "slas.1.slos.ttft.p100: 'p100' is no percentile", "p50, p90"),
    (
        "- name: fast",
        "- name: fast\n    attainment: 95",
        12,
        "slas.0.attainment: should be less than 1, not 95",
        SCHEMA,
    ),
    (
        "input_tokens: 64",
        "input_tokens: 64k",
        8,
        "workloads.0.input_tokens: should be a valid integer, not '64k'",
        "{median, sigma, high}",
    ),
    (
        "input_tokens: 64",
        "input_tokens: 0",
        8,
        "workloads.0.input_tokens: should be greater than 0, not 0",
        "{median, sigma, high}",
    ),
    (
        "- name: chat",
        "- name: chat\n    prefix_hits: 0.5",
        8,
        "workloads.0.prefix_hits: is no mapping",
        "`prefix_hits: {expected: 0.5}`",
    ),
    (
        "- name: chat",
        "- name: chat\n    arrivals:\n      ramp: { low: 0.2, high: 1.5, period: 1m }",
        9,
        "workloads.0.arrivals.ramp: low 0.2 and high 1.5 do not rise about 1",
        "low: 1 - x",
    ),
    (
        "- name: chat",
        "- name: chat\n    arrivals: { ramp: { low: 0.2, high: 1.8 } }",
        8,
        "workloads.0.arrivals.ramp.period: is missing",
        "add `period:`",
    ),
    (
        "- name: chat",
        "- name: chat\n    arrivals: { gamma: { cv: 0 } }",
        8,
        "workloads.0.arrivals.gamma.cv: should be greater than 0, not 0",
        SCHEMA,
    ),
    (
        "- name: chat",
        "- name: chat\n    arrivals: { rampp: 2 }",
        8,
        "workloads.0.arrivals: names no arrivals",
        "{ramp: {low: 0.5, high: 1.5, period: 1m}}",
    ),
    (
        "- name: chat",
        "- name: chat\n    arrivals: bursty",
        8,
        "workloads.0.arrivals: names no arrivals",
        "write poisson, trace, {gamma: {cv: 2}}",
    ),
    ("launches: 3", "launches: 0", 30, "budget.launches: should be greater than 0, not 0", SCHEMA),
    (
        "contract: percentile",
        "contract: percentil",
        15,
        "slas.1.contract: 'percentil' is no contract",
        "'joint', 'percentile'",
    ),
    (
        "launches: 3",
        "launches: 3\npower:\n  basis: wall",
        32,
        "power.basis: should be 'auto' or 'gpu', 'host'",
        SCHEMA,
    ),
    (
        "launches: 3",
        "launches: 3\nhardware: all",
        31,
        "hardware: should be 'auto' or a mapping, not 'all'",
        SCHEMA,
    ),
    ("launches: 3", "launches: 3\nhardware:\n  gpu: 3", 32, "hardware.gpu: unknown key", "'gpus'"),
    ("- name: chat", "- name: my chat", 7, "workloads.0.name: 'my chat' is no name", "letters"),
    # Shapes.
    ("- name: fast\n    slos:\n      ttft: 200ms", "- fast", 11, "slas.0: is no mapping", "key: value"),
    ("try_first:\n  - max_num_seqs: 8", "try_first: max", 27, "try_first: is no list", "[a, b]"),
    (
        "- name: vllm",
        "- name: vllm\n  - name: vllm",
        4,
        "engines.1.name: 'vllm' is the name of another",
        "apart",
    ),
    # Spaces.
    (
        "low: 2",
        "low: 8",
        22,
        "space.dimensions.speculative_tokens: the range is empty: low 8 is above high 4",
        "swap them",
    ),
    ("[default, 4, 8]", "[]", 20, "space.dimensions.max_num_seqs: is empty", "at least one"),
    (
        "[default, 4, 8]",
        "{ choices: [] }",
        20,
        "space.dimensions.max_num_seqs.choices: is empty",
        "at least one",
    ),
    (
        "[default, 4, 8]",
        "[default, 0]",
        20,
        "space.dimensions.max_num_seqs: should be greater than 0, not 0",
        SCHEMA,
    ),
    (
        "[default, 4, 8]",
        "[default, four]",
        20,
        "space.dimensions.max_num_seqs: should be a valid integer, not 'four'",
        SCHEMA,
    ),
    (
        "[default, 4, 8]",
        "[[4]]",
        20,
        "space.dimensions.max_num_seqs.0: should be a valid boolean or a valid integer",
        SCHEMA,
    ),
    (
        "speculation: [default, ngram]",
        "speculation: [default, ngram, medusa]",
        21,
        "space.dimensions.speculation: should be 'none', 'ngram', ",
        SCHEMA,
    ),
    (
        "speculation: ngram\n",
        "speculation: none\n",
        26,
        "space.dimensions.speculative_tokens.when.speculation: no earlier dimension speculation",
        "put speculation above",
    ),
    (
        "context_length: 2048",
        "context_length: 0",
        5,
        "engines.0.fixed.context_length: should be greater than 0",
        SCHEMA,
    ),
    (
        "- max_num_seqs: 8",
        "- max_num_seqs: -1",
        28,
        "try_first.0.max_num_seqs: should be greater than 0",
        SCHEMA,
    ),
    (
        "space:\n  dimensions:",
        "space: nowhere\nseed:\n  dimensions:",
        18,
        "space: no space is named 'nowhere'",
        "known: ",
    ),
    # What belongs together.
    ("- name: slow", "- name: fast", 14, "slas.1.name: 'fast' is the name of another", "name them apart"),
    (
        "- name: fast",
        "- name: fast\n    workload: code",
        12,
        "slas.0.workload: no workload is named 'code'",
        "known: chat",
    ),
    # YAML itself.
    ("[default, 4, 8]", "[default, 4, 8", 21, "is no YAML: expected ',' or ']'", "mend the line"),
    ("  launches: 3", "\tlaunches: 3", 30, "is no YAML: found character '\\t'", "not tabs"),
    ("budget:", "model: other\nbudget:", 29, 'is no YAML: found duplicate key "model"', "mend the line"),
]


@pytest.mark.parametrize(("old", "new", "line", "what", "remedy"), MISTAKES)
def test_a_mistake_is_one_problem_at_its_line_with_a_remedy(
    path: Path, old: str, new: str, line: int, what: str, remedy: str
) -> None:
    (problem,) = problems(path, changed(old, new))
    assert problem.where == f"{path}:{line}"
    assert problem.what.startswith(what)
    assert remedy in problem.remedy


def test_every_mistake_of_a_file_is_told_at_once(path: Path) -> None:
    text = (
        changed("launches: 3", "launches: 0")
        .replace("ttft: 200ms", "ttft: 200")
        .replace("model: ", "modle: ")
    )
    assert sorted(problem.where for problem in problems(path, text)) == [
        f"{path}:{line}" for line in (1, 13, 30)
    ]


def test_the_error_is_for_people(path: Path) -> None:
    path.write_text(changed("ttft: 200ms", "tfft: 200ms"))
    with pytest.raises(InputError) as caught:
        read_study(path, SPACES)
    assert str(caught.value) == f"{path}:13: slas.0.slos.tfft: unknown key\n    remedy: did you mean 'ttft'?"


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list\n", "42"])
def test_what_is_no_mapping_is_no_study(path: Path, text: str) -> None:
    (problem,) = problems(path, text)
    assert (problem.where, problem.what) == (f"{path}:1", "is no YAML mapping")


def test_a_file_that_is_not_there_is_named_once(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_study(path, SPACES)
    (problem,) = caught.value.problems
    assert (problem.where, problem.what) == (str(path), "cannot be read: No such file or directory")
    assert "quickstart.yaml" in problem.remedy


def test_bytes_that_are_no_text_are_told(path: Path) -> None:
    path.write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match=r"cannot be read: .*utf-8"):
        read_study(path, SPACES)


def test_a_space_by_name_comes_from_its_folder_and_so_do_its_problems(path: Path, tmp_path: Path) -> None:
    spaces = tmp_path / "spaces"
    spaces.mkdir()
    (spaces / "small.yaml").write_text("dimensions:\n  max_num_seqs: [default, 4]\n")
    head, tail = SOUND[: SOUND.index("space:")], SOUND[SOUND.index("try_first:") :]
    path.write_text(f"{head}space: small\n{tail}")
    assert read_study(path, spaces).space.choices("max_num_seqs") == ("default", 4)
    (spaces / "small.yaml").write_text("dimensions:\n  eager: [true]\n  max_num_seq: [default, 4]\n")
    with pytest.raises(InputError) as caught:
        read_study(path, spaces)
    (problem,) = caught.value.problems
    assert problem.where == f"{spaces / 'small.yaml'}:3"
    assert problem.what == "dimensions.max_num_seq: unknown key"
    assert problem.remedy == "did you mean 'max_num_seqs'?"


def test_overrides_take_the_place_of_keys(path: Path) -> None:
    path.write_text(SOUND)
    study = read_study(path, SPACES, {"name": "other", "budget": {"launches": 5}})
    assert (study.name, study.budget.launches) == ("other", 5)


def parallel(path: Path, text: str, devices: int) -> list[InputProblem]:
    path.write_text(text)
    study = read_study(path, SPACES)
    try:
        check_against_hardware(path, study, hardware(devices))
    except InputError as wrong:
        return list(wrong.problems)
    return []


WITH_PARALLEL = changed("[default, 4, 8]\n", "[default, 4, 8]\n    tensor_parallel: [default, 2, 4, 8]\n")


def test_more_ranks_than_devices_are_told_at_their_line(path: Path) -> None:
    (problem,) = parallel(path, WITH_PARALLEL, 2)
    assert problem.where == f"{path}:21"
    assert problem.what == "space.dimensions.tensor_parallel: 8 is more than the 2 x a device there are"
    assert "leave out values above 2" in problem.remedy


def test_a_fixed_number_of_ranks_is_checked_too(path: Path) -> None:
    text = changed("context_length: 2048", "context_length: 2048\n      pipeline_parallel: 4")
    (problem,) = parallel(path, text, 2)
    assert (problem.where, problem.what.split(":")[0]) == (f"{path}:6", "engines.0.fixed.pipeline_parallel")


def test_as_many_ranks_as_devices_are_sound(path: Path) -> None:
    assert parallel(path, WITH_PARALLEL, 8) == []
    assert parallel(path, SOUND, 1) == []


def test_slas_alone_are_read_from_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "slas.yaml"
    path.write_text("slas:\n  - name: fast\n    slos: { ttft: 1s }\n")
    (sla,) = read_slas(path)
    assert sla.describe() == "95% of requests: ttft<=1s"
    path.write_text("slas:\n  - name: fast\n    slos: { tfft: 1s }\n")
    with pytest.raises(InputError, match=r"slas.yaml:3: slas.0.slos.tfft: unknown key"):
        read_slas(path)


def test_anchors_and_merges_are_plain_yaml(path: Path) -> None:
    path.write_text(
        changed("input_tokens: 64", "input_tokens: &short 64").replace(
            "output_tokens: { median: 32, sigma: 0.5, high: 128 }", "output_tokens: *short"
        )
    )
    (workload,) = read_study(path, SPACES).workloads
    assert workload.output_tokens == 64


def test_a_line_is_that_of_the_nearest_key_there_is(path: Path) -> None:
    path.write_text(SOUND)
    source = SourceFile(path)
    assert source.line(("slas", 1, "slos", "ttft", "p95")) == 17
    assert source.line(("slas", 1, "nowhere")) == 14
    assert source.line(("nowhere",)) == 1


# Round trips: what the database keeps of a study is the study.

durations = st.integers(1, 10**5).flatmap(
    lambda n: st.sampled_from([f"{n}ms", f"{n}s", f"{n}m", f"{n}us", f"1h{n}ms"])
)
percentiles = st.dictionaries(st.sampled_from(["p50", "p90", "p95", "p99", "p999"]), durations, min_size=1)
lengths = st.one_of(
    st.integers(1, 4096),
    st.builds(lambda n: {"tokens": n}, st.integers(1, 4096)),
    st.builds(
        lambda median, sigma, high: {"median": median, "sigma": sigma, "low": 1, "high": median + high},
        st.integers(1, 512),
        st.floats(0.01, 2.0),
        st.integers(0, 512),
    ),
)
joint = st.builds(
    lambda share, slos: {"attainment": share, "slos": slos},
    st.floats(0.5, 0.999),
    st.fixed_dictionaries(
        {"ttft": durations}, optional={"stall": durations, "interactivity": st.floats(1, 99)}
    ),
)
by_percentile = st.builds(
    lambda slos: {"contract": "percentile", "slos": slos},
    st.fixed_dictionaries({"e2e": percentiles}, optional={"tpot": percentiles}),
)
studies = st.fixed_dictionaries(
    {
        "name": st.just("study"),
        "model": st.just("some/model"),
        "engines": st.just(
            [{"name": "vllm", "fixed": {"eager": True, "memory_fraction": 0.9}, "args": ["--x"]}]
        ),
        "workloads": st.builds(
            lambda inputs, outputs: [{"name": "chat", "input_tokens": inputs, "output_tokens": outputs}],
            lengths,
            lengths,
        ),
        "slas": st.lists(joint | by_percentile, min_size=1, max_size=3).map(
            lambda slas: [{"name": f"sla-{i}", **sla} for i, sla in enumerate(slas)]
        ),
        "space": st.just(
            {
                "dimensions": {
                    "max_num_seqs": {"low": 4, "high": 64, "log": True},
                    "chunked_prefill": ["default", True, False],
                    "speculation": {"choices": ["default", "ngram"]},
                    "speculative_tokens": {"low": 2, "high": 8, "step": 3, "when": {"speculation": "ngram"}},
                    "memory_fraction": [0.8, 0.95],
                }
            }
        ),
        "try_first": st.just([{"max_num_seqs": 8, "speculation": "default"}, {"chunked_prefill": False}]),
        "budget": st.fixed_dictionaries({"wall_time": durations}, optional={"launches": st.integers(1, 99)}),
    },
    optional={
        "hardware": st.sampled_from(["auto", {"gpus": 4}, {"cpus": 2}]),
        "power": st.sampled_from([{"basis": "auto"}, {"basis": "host"}]),
        "requirements": st.just({"context_length": 4096, "sampling": ["min_p"], "tools": "hermes"}),
        "measurement": st.builds(lambda window: {"window": window}, durations),
        "baseline": st.just("vllm serve some/model"),
    },
)


@given(studies)
def test_a_stored_study_is_the_study(data: dict[str, Any]) -> None:
    study = StudySpec.model_validate(data)
    assert StudySpec.model_validate_json(study.model_dump_json()) == study


def test_the_quickstart_is_sound_and_survives_storing() -> None:
    study = read_study(QUICKSTART, SPACES)
    assert [sla.name for sla in study.slas] == ["interactive", "bulk"]
    assert StudySpec.model_validate_json(study.model_dump_json()) == study


def test_the_schema_accepts_the_quickstart() -> None:
    jsonschema.validate(plain(SourceFile(QUICKSTART).data), study_schema())


def test_the_schema_refuses_what_the_parser_refuses() -> None:
    data = plain(SourceFile(QUICKSTART).data)
    with pytest.raises(jsonschema.ValidationError, match="bugdet"):
        jsonschema.validate({**data, "bugdet": {}}, study_schema())


def plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list) else node
