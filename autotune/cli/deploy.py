"""``autotune export``, ``verify``, ``drift`` and ``import``: what pipelines do with a recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from autotune import wiring
from autotune.adapters.files.imported_results import read_results
from autotune.adapters.files.recommendation_file import (
    SUFFIXES,
    read_recommendation,
    read_templates,
    write_file,
    yaml_text,
)
from autotune.cli import render, render_deploy
from autotune.cli.progress import progress
from autotune.cli.stopping import stop_signals
from autotune.domain.basics.errors import InputError, InputProblem, StudyCancelledError
from autotune.domain.basics.quantities import parse_duration_s
from autotune.domain.configs.config import EngineConfig
from autotune.domain.recommending.contract import RecommendationDocument, SlaAnswer
from autotune.domain.recommending.exports.forms import Form, Order, export, notes
from autotune.domain.recommending.fleet import Demand
from autotune.domain.recommending.study_drift import drift_document, study_drift
from autotune.domain.recommending.verification import Outcome, verification_document, worst

PeakRate = Annotated[
    float | None, typer.Option(help="Requests per second at the day's peak: sizes a fleet for each SLA.")
]
DailyCurve = Annotated[
    str | None,
    typer.Option(
        metavar="SHARES|FILE",
        help="Demand over a day as shares of the peak, apart by commas or in a file; any number of steps.",
    ),
]
ValidDays = Annotated[int, typer.Option(min=1, help="Days after which the document expires.")]
Storage = Annotated[str | None, typer.Option(help="SQLAlchemy URL, where a study is named.")]
Recommendation = Annotated[
    str,
    typer.Argument(metavar="REC|STUDY", help="A document (.yaml or .json), or a study's name."),
]
SlaName = Annotated[str | None, typer.Option("--sla", help="Which SLA; the only one if there is one.")]

EXPORT_EXAMPLES = """Examples:

autotune export rec.yaml --sla interactive --form shell -o serve.sh

autotune export quickstart --sla bulk --form kubernetes -o bulk.yaml

autotune export rec.yaml --sla bulk --form kserve --template ours/ -o isvc.yaml"""

VERIFY_EXAMPLES = """Examples:

autotune verify rec.yaml --sla interactive

autotune verify rec.yaml --url https://llm.example --token-variable LLM_TOKEN --json

Exit codes: 0 holds; 1 broken; 3 could not be judged; 2 wrong input."""
DRIFT_EXAMPLES = """Example: autotune drift nightly-0.32 nightly-0.33

Exit codes: 0 keep what is deployed; 1 tune again; 3 could not be compared; 2 wrong input."""
IMPORT_EXAMPLE = "Example: autotune import result.json profile_export_aiperf.json --study quickstart"
EXIT_CODES = {Outcome.HOLDS: 0, Outcome.BROKEN: 1, Outcome.NOT_JUDGED: 3}


def register(app: typer.Typer) -> None:
    """Give the application these commands."""
    app.command("export", epilog=EXPORT_EXAMPLES)(export_command)
    app.command("verify", epilog=VERIFY_EXAMPLES)(verify_command)
    app.command("drift", epilog=DRIFT_EXAMPLES)(drift_command)
    app.command("import", epilog=IMPORT_EXAMPLE)(import_command)


def export_command(  # noqa: PLR0917 - typer's options
    recommendation: Recommendation,
    form: Annotated[Form, typer.Option(help="What to write.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if left out.")
    ] = None,
    sla: SlaName = None,
    name: Annotated[str, typer.Option(help="What the objects are called; STUDY-SLA if left out.")] = "",
    replicas: Annotated[int, typer.Option(min=1, help="Replicas, where the form has them.")] = 1,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="[ROLE=]IMAGE", help="Image to run, of one process or of all."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="Folder whose FORM.yaml is merged into what is written: your own additions."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write a recommended configuration as something to deploy; no secret is ever written into it."""
    document = _document(recommendation, storage)
    answer = answer_for(document, sla)
    order = Order(
        form=form,
        name=name,
        replicas=replicas,
        images=_images(image or []),
        templates=read_templates(template, form) if template else (),
        rewritten=wiring.for_dynamo(answer),
    )
    written = export(document, answer, order)
    if isinstance(written, str):
        text = written
    else:
        lines = (line for note in notes(document, answer) for line in note.splitlines())
        heading = "".join(f"# {line}\n" for line in lines)
        text = heading + yaml_text(written)
    if output is None:
        render.print_plain(text.rstrip())
        return
    write_file(output, text)
    if form is Form.SHELL:
        output.chmod(0o755)
    Console(stderr=True).print(f"written to {output}", style="dim")


def verify_command(  # noqa: PLR0917 - typer's options
    recommendation: Annotated[Path, typer.Argument(metavar="REC", help="A document, .yaml or .json.")],
    url: Annotated[
        str | None, typer.Option(help="A deployment that runs; without it what is exported is run here.")
    ] = None,
    sla: Annotated[str | None, typer.Option("--sla", help="Which SLA; all if left out.")] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="DIR", help="Use the engine in this virtual environment.")
    ] = None,
    model: Annotated[str, typer.Option(help="Name that the deployment at --url serves the model by.")] = "",
    token_variable: Annotated[
        str, typer.Option(help="Environment variable with the bearer token for --url.")
    ] = "",
    window: Annotated[
        str | None, typer.Option(help="Longest window, such as 2m; as long as the SLA takes if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Verify a contract: serve what it recommends, or ask a deployment, at its operating point."""
    document = read_recommendation(recommendation)
    answers = document.slas if sla is None else (answer_for(document, sla),)
    if not answers:
        raise InputError(InputProblem(str(recommendation), "has no SLA", "write it anew with recommend -o"))
    order = wiring.VerifyOrder(
        document=document,
        answers=answers,
        url=url,
        token_variable=token_variable,
        served_model=model,
        environment=engine,
        window_s=_duration(window) if window else None,
    )
    console = Console(stderr=as_json)
    with stop_signals(console, "stopping: the engine is being ended") as request:
        try:
            with progress(console, EngineConfig(engine="")) as sink:
                found = wiring.run_verification(order, sink, request)
        except StudyCancelledError as stopped:
            raise typer.Exit(128 + request.signal) from stopped
    if as_json:
        render.print_json(verification_document(found))
    else:
        render_deploy.print_verifications(found)
    raise typer.Exit(EXIT_CODES[worst(found)])


def drift_command(
    before: Annotated[str, typer.Argument(metavar="STUDY_A", help="The study of what is deployed.")],
    after: Annotated[str, typer.Argument(metavar="STUDY_B", help="The same on another engine version.")],
    storage: Storage = None,
    storage_b: Annotated[str | None, typer.Option(help="Storage of STUDY_B, if it is another.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compare two studies of one question across engine versions: what changed, and whether to tune again."""
    first = wiring.read_store(storage or wiring.DEFAULT_STORAGE)
    second = wiring.read_store(storage_b) if storage_b else first
    found = study_drift(wiring.studied(first, before), wiring.studied(second, after))
    if as_json:
        render.print_json(drift_document(found))
    else:
        render_deploy.print_drift(found)
    raise typer.Exit(1 if found.tune_again else 0 if found.judged else 3)


def import_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Results of other load generators.")],
    study: Annotated[str, typer.Option(help="Study to keep them beside.")],
    storage: Storage = None,
) -> None:
    """Import results of `vllm bench serve`, AIPerf and GuideLLM: points beside a study's, never ranked."""
    store = wiring.open_store(storage or wiring.DEFAULT_STORAGE)
    row, _ = store.study(study)
    # All are read before any is kept: a file that is refused leaves nothing behind.
    found = [each for path in files for each in read_results(path)]
    for each in found:
        store.catalog.put_observation(row.name, each)
    render_deploy.print_observations(found)


def demand_of(peak_rate: float | None, daily_curve: str | None) -> Demand | None:
    """The demand that the options tell of; raises InputError."""
    if peak_rate is None:
        if daily_curve is not None:
            raise InputError(InputProblem("--daily-curve", "is of a peak", "give --peak-rate as well"))
        return None
    try:
        shares = _shares(daily_curve) if daily_curve else [1.0]
        return Demand(peak_rps=peak_rate, daily_curve=tuple(shares))
    except (ValidationError, ValueError, OSError) as wrong:
        remedy = "write requests per second above 0, and shares of the peak from 0 to 1: 0.1,0.3,1,0.6"
        raise InputError(InputProblem("--peak-rate, --daily-curve", _first(wrong), remedy)) from wrong


def answer_for(document: RecommendationDocument, sla: str | None) -> SlaAnswer:
    """The answer for an SLA, or for the only one; raises InputError that names those there are."""
    known = ", ".join(each.name for each in document.slas)
    if sla is None and len(document.slas) == 1:
        return document.slas[0]
    if sla is None:
        raise InputError(InputProblem("--sla", "is not given", f"name one of: {known}"))
    if (answer := document.sla(sla)) is None:
        raise InputError(InputProblem(f"SLA {sla!r}", "is not in the document", f"known: {known}"))
    return answer


def _document(recommendation: str, storage: str | None) -> RecommendationDocument:
    """A document from its file, or made now of a study."""
    path = Path(recommendation)
    if path.suffix.lower() in SUFFIXES:
        return read_recommendation(path)
    return wiring.recommended(wiring.read_store(storage or wiring.DEFAULT_STORAGE), recommendation)


def _duration(text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as wrong:
        raise InputError(InputProblem("--window", str(wrong))) from wrong


def _images(given: Sequence[str]) -> dict[str, str]:
    """Images by role: an image's own name may hold ``=`` nowhere, so the first tells them apart."""
    images = {}
    for each in given:
        role, equals, image = each.partition("=")
        images[role if equals else ""] = image if equals else each
    if not all(images.values()):
        raise InputError(InputProblem("--image", "names no image", "write --image [ROLE=]IMAGE"))
    return images


def _shares(text: str) -> list[float]:
    path = Path(text)
    given = path.read_text(encoding="utf-8") if path.is_file() else text
    return [float(each) for each in given.replace("\n", ",").split(",") if each.strip()]


def _first(wrong: Exception) -> str:
    if isinstance(wrong, ValidationError):
        error = wrong.errors()[0]
        return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
    return str(wrong)
