"""The command ``autotune``.

Exit codes: 0 done; 1 done, but nothing could be recommended (or a check failed); 2 wrong input, nothing was
started; 3 the bench broke; 130 and 143 stopped by Ctrl-C or SIGTERM, to be resumed.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from autotune import __version__, wiring
from autotune.adapters.devices.accelerators import read_accelerators
from autotune.adapters.engines.environments import EngineEnvironments
from autotune.adapters.files.recommendation_file import form_of, write_file, written
from autotune.adapters.files.study_file import SourceFile, read_slas, study_schema
from autotune.cli import deploy, engines, models, render, render_deploy, web, workload
from autotune.cli.progress import progress
from autotune.cli.stopping import stop_signals
from autotune.domain.basics.errors import AutotuneError, InputError, InputProblem, StudyCancelledError
from autotune.domain.hardware.node import describe
from autotune.domain.judging.ledger import Ledger
from autotune.domain.judging.sla import Sla
from autotune.domain.launches.launch import LaunchContext
from autotune.domain.recommending.contract import recommendation_schema
from autotune.domain.recommending.document import (
    VALID_DAYS,
    studies_document,
    trial_document,
    trials_document,
)
from autotune.domain.recommending.recommendation import Recommendation, Standing, ledger_for, recommend
from autotune.domain.recommending.relaxation import unmet
from autotune.domain.recommending.spending import spent_on
from autotune.domain.studies.observations import observations_document
from autotune.domain.studies.records import TrialRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.runs.validation import AskEngine, Asking, validate_space

OK, NOTHING, WRONG_INPUT, BENCH_BROKE = 0, 1, 2, 3

app = typer.Typer(
    name="autotune",
    help="Find the inference configuration with the most goodput per watt and per dollar, per SLA.",
    epilog="Example: autotune tune search_spaces/quickstart.yaml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(engines.app, name="engines")
app.add_typer(models.app, name="models")
app.add_typer(workload.app, name="workload")
app.command(epilog="Example: autotune serve --storage sqlite:///studies.db --port 8080")(web.serve)
app.command(epilog="Example: autotune report quickstart -o report.html")(web.report)
deploy.register(app)

RECOMMEND_EXAMPLES = """Examples:

autotune recommend quickstart --sla strict.yaml --json

autotune recommend quickstart -o rec.yaml --peak-rate 40 --daily-curve 0.1,0.3,1,0.6"""


class SchemaOf(StrEnum):
    """Documents that have a JSON Schema."""

    STUDY = "study"
    RECOMMENDATION = "recommendation"


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name.")]
Storage = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL; the study file's own, or sqlite:///studies.db.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
EngineAt = Annotated[
    str | None,
    typer.Option("--engine", metavar="ENGINE=DIR", help="Use the engine in this virtual environment."),
]
Model = Annotated[str | None, typer.Option(help="Model to serve in place of the file's.")]
Name = Annotated[str | None, typer.Option(help="Name to keep the study under, in place of the file's.")]


@app.command(epilog="Example: autotune tune search_spaces/quickstart.yaml --engine vllm=/path/to/venv")
def tune(
    study_file: StudyFile,
    engine: EngineAt = None,
    model: Model = None,
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Run a study: launch engines, drive load, measure, and recommend a configuration per SLA.

    A study that was interrupted goes on where it stopped, and so does a finished one whose budget was
    changed; else the result of a finished one is shown.
    """
    study = wiring.load_study(study_file, _overrides(study_file, engine, model, name, storage))
    _run(study, as_json=as_json)


@app.command(epilog="Example: autotune resume quickstart")
def resume(study_name: StudyName, storage: Storage = None, as_json: Json = False) -> None:
    """Go on with a study that was stopped; launches that were cut short are launched again."""
    _, study = wiring.read_store(storage or wiring.DEFAULT_STORAGE).study(study_name)
    _run(study.model_copy(update={"storage": storage}) if storage else study, as_json=as_json)


@app.command("recommend", epilog=RECOMMEND_EXAMPLES)
def recommend_command(  # noqa: PLR0917 - typer's options
    study_name: StudyName,
    sla: Annotated[
        Path | None, typer.Option(help="File with other SLAs, scored from the archive with no engine.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the document here: .yaml or .json.")
    ] = None,
    peak_rate: deploy.PeakRate = None,
    daily_curve: deploy.DailyCurve = None,
    valid_days: deploy.ValidDays = VALID_DAYS,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Recommend a configuration per SLA from what was measured; needs no engine and no accelerator."""
    store = wiring.read_store(storage or wiring.DEFAULT_STORAGE)
    slas = read_slas(sla) if sla else None
    form = form_of(output) if output else "json"
    demand = deploy.demand_of(peak_rate, daily_curve)
    if as_json or output or demand:
        document = wiring.recommended(store, study_name, slas, demand=demand, valid_days=valid_days)
        if output:
            write_file(output, written(document, form))
        if as_json:
            render.print_plain(written(document, "json").rstrip())
            raise typer.Exit(OK if any(each.trial is not None for each in document.slas) else NOTHING)
    read, found = _recommendations(store, study_name, slas)
    _print_recommendations(read, found)
    if demand:
        render_deploy.print_fleets(document)
    if output:
        Console(stderr=True).print(f"written to {output}", style="dim")
    raise typer.Exit(OK if any(r.best for r in found) else NOTHING)


@app.command(epilog="Examples: autotune show · autotune show quickstart · autotune show quickstart 3 --json")
def show(
    study_name: Annotated[str | None, typer.Argument(metavar="STUDY", help="A study's name.")] = None,
    trial: Annotated[int | None, typer.Argument(metavar="TRIAL", help="A trial's number.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Show the studies, one study's trials, or one trial with its log's first telling line."""
    store = wiring.read_store(storage or wiring.DEFAULT_STORAGE)
    if study_name is None:
        rows = store.catalog.studies()
        if as_json:
            render.print_json(studies_document(rows))
        elif rows:
            render.wide_console().print(render.studies(rows))
        else:
            render.print_plain(f"no study in {store.url}; `autotune tune STUDY.yaml` runs one")
        return
    row, study = store.study(study_name)
    trials = store.catalog.trials(row.name)
    if trial is not None:
        _show_trial(store, study, trials, trial, as_json=as_json)
    elif as_json:
        observations = observations_document(store.catalog.observations(row.name))
        render.print_json({**trials_document(row.name, trials), "observations": observations})
    else:
        slas = [sla.name for sla in study.slas]
        render.print_trials(render.wide_console(), trials, study.default_config(), slas)
        if observations_of := store.catalog.observations(row.name):
            render_deploy.print_observations(observations_of)


def _show_trial(
    store: wiring.Store, study: StudySpec, trials: tuple[TrialRow, ...], number: int, *, as_json: bool
) -> None:
    """One trial: its row, its load levels, the node before and after, its command."""
    row = next((t for t in trials if t.number == number), None)
    if row is None:
        what, remedy = f"has no trial {number}", f"`autotune show {study.name}` lists them"
        raise InputError(InputProblem(f"study {study.name!r}", what, remedy))
    if as_json:
        render.print_json(trial_document(row))
        return
    console = render.wide_console()
    render.print_trials(console, [row], study.default_config(), [sla.name for sla in study.slas])
    if row.state is TrialState.MEASURED:
        record = wiring.launch_record(store, study.name, number)
        console.print("", render.levels(record))
        for state in filter(None, (record.before, record.after)):
            console.print(Text(describe(state), style="dim"), soft_wrap=True)
    if row.command:
        render.print_plain(f"\n{row.command}")


@app.command(epilog="Example: autotune validate search_spaces/quickstart.yaml")
def validate(  # noqa: PLR0917 - typer's options
    study_file: StudyFile,
    engine: EngineAt = None,
    model: Model = None,
    most: Annotated[int, typer.Option(help="Configurations to check at most.")] = 10_000,
    most_asked: Annotated[
        int, typer.Option(help="Configurations to ask the engine about at most: about a second each.")
    ] = 200,
    no_engine: Annotated[
        bool, typer.Option("--no-engine", help="Check on paper only; ask no engine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a study file, the files it names, and every configuration: on paper, then by the engine itself.

    Nothing is started: an engine's own parser and validation are asked. What they take may still fail later.
    """
    study = wiring.load_study(study_file, _overrides(study_file, engine, model, None, None))
    _check_workload_files(study_file, study)
    wiring.baseline_config(study)
    contexts = {engine.name: wiring.paper_context(study, engine) for engine in study.engines}
    kind = next(iter(contexts.values())).environment.kind
    setting = wiring.setting_for(study, wiring.hardware_for(study, kind))
    asks = not no_engine and any(wiring.launcher_of(name).traits.config_probe for name in contexts)
    verdict = validate_space(
        study,
        wiring.launchers(),
        contexts,
        setting,
        most=most,
        asking=Asking(_ask(contexts), most_asked) if asks else None,
    )
    if as_json:
        render.print_json(verdict.document())
    else:
        render.print_plain(verdict.describe(str(study_file)))
    raise typer.Exit(OK if verdict.accepted else NOTHING)


def _ask(contexts: Mapping[str, LaunchContext]) -> AskEngine:
    """Asks installed engines, and says on standard error how far it is."""
    console = Console(stderr=True)

    def ask(engine: str, commands: Sequence[Sequence[str]], env: Mapping[str, str]) -> Sequence[str | None]:
        def told(answered: int, of: int) -> None:
            console.print(f"asked {engine} about {answered} of {of} command lines", style="dim")

        launcher, environment = wiring.launcher_of(engine), contexts[engine].environment
        return EngineEnvironments().refusals(launcher, environment, commands, env=env, told=told)

    return ask


def _check_workload_files(study_file: Path, study: StudySpec) -> None:
    """Read the traffic and the text of each workload as a run does; raises InputError with their lines."""
    source, problems = SourceFile(study_file), []
    for place, one in enumerate(study.workloads):
        alone = study.model_copy(update={"workloads": (one,)})
        try:
            wiring.planner_for(alone, wiring.traffic_of(alone))
        except InputError as wrong:
            problems += [
                source.problem(("workloads", place), f"{p.where}: {p.what}", p.remedy) for p in wrong.problems
            ]
    if problems:
        raise InputError(problems)


@app.command(epilog="Examples: autotune schema > study.schema.json · autotune schema recommendation")
def schema(
    of: Annotated[SchemaOf, typer.Argument(help="study, or recommendation.")] = SchemaOf.STUDY,
) -> None:
    """Print the JSON Schema of study files or of recommendation documents, for editors and pipelines."""
    render.print_json(study_schema() if of is SchemaOf.STUDY else recommendation_schema())


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Take the options that stand before a command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; errors end it with one clear message and the exit code of their kind."""
    try:
        app()
    except InputError as wrong:
        _complain(str(wrong))
        sys.exit(WRONG_INPUT)
    except AutotuneError as broken:
        _complain(str(broken))
        sys.exit(BENCH_BROKE)
    except BrokenPipeError:
        # The reader of a pipe closed it; nothing more can be said on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        # Python's own exit code for a bug is 1, which of `verify` and `drift` is a verdict.
        traceback.print_exc()
        sys.exit(BENCH_BROKE)


def _run(study: StudySpec, *, as_json: bool) -> None:
    console = Console(stderr=as_json)
    store = wiring.open_store(study.storage)
    with stop_signals(console) as request:
        try:
            with progress(console, study.default_config()) as sink:
                wiring.tune(study, store, sink, request)
        except StudyCancelledError as stopped:
            console.print(f"stopped; go on with: autotune resume {study.name}")
            raise typer.Exit(128 + request.signal) from stopped
    read, found = _recommendations(store, study.name)
    if as_json:
        render.print_plain(written(wiring.recommended(store, study.name), "json").rstrip())
    else:
        _print_recommendations(read, found)
    raise typer.Exit(OK if any(r.best for r in found) else NOTHING)


def _recommendations(
    store: wiring.Store, study_name: str, slas: tuple[Sla, ...] | None = None
) -> tuple[wiring.Results, tuple[Recommendation, ...]]:
    read = wiring.results(store, study_name)
    return read, tuple(recommend(read.study, sla, read.candidates) for sla in slas or read.study.slas)


def _print_recommendations(read: wiring.Results, found: tuple[Recommendation, ...]) -> None:
    """Print the answers, of those that nothing met what is in the way, and what the study spent."""
    study, rows, candidates = read
    accelerators = read_accelerators()

    def ledger(standing: Standing) -> Ledger:
        return ledger_for(standing, study, accelerators)

    why = {r.sla.name: unmet(study, r.sla, candidates) for r in found if r.met_by_none}
    console = render.wide_console()
    render.print_recommendations(console, found, study.default_config(), ledger, why)
    console.print(Text(f"\n{spent_on(rows, candidates).describe()}", style="dim"))


def _overrides(
    study_file: Path, engine: str | None, model: str | None, name: str | None, storage: str | None
) -> dict[str, Any]:
    """What the command line says in place of the file."""
    overrides: dict[str, Any] = {
        key: value for key, value in (("model", model), ("name", name), ("storage", storage)) if value
    }
    if engine:
        engine_id, _, at = engine.partition("=")
        listed = SourceFile(study_file).data.get("engines") or []
        if not at or engine_id not in [e.get("name") for e in listed]:
            remedy = "write --engine vllm=/path/to/venv, for an engine that the study file lists"
            raise InputError(InputProblem("--engine", f"{engine!r} names no engine of the study", remedy))
        overrides["engines"] = [
            {**e, "environment": str(Path(at).expanduser().resolve())}
            if e.get("name") == engine_id
            else {**e}
            for e in listed
        ]
    return overrides


def _complain(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text, style="red")
