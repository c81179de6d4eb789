"""The recommendation as a contract: what pipelines read, keep, and have verified.

Every key is always there; a figure that was withheld is null, with the reason beside it. Durations and
latencies are in seconds, power in watts, load in requests per second, unless a key says otherwise. A change
that a reader of version 1 would not understand makes version 2.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.judging.ledger import Prices
from autotune.domain.judging.quality import Measure, QualityState, Setting
from autotune.domain.judging.scoring import SlaVerdict
from autotune.domain.judging.sla import Sla
from autotune.domain.launches.deployment import Deployment
from autotune.domain.load.workload import Workload
from autotune.domain.measuring.measurement import WindowEnd
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis
from autotune.domain.recommending.fleet import FleetPlan
from autotune.domain.studies.study import MeasurementSpec

VERSION = "1"
SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"

Ends = tuple[float | None, float | None]
"""An interval's ends at 90 %; null for an end that is not finite."""


class Part(BaseModel):
    """Part of the document: immutable, and without keys that the schema does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Precision(Part):
    """What decides how exactly the model is computed."""

    checkpoint: str
    weights: str
    activations: str
    kv_cache: str
    build: str
    other: tuple[str, ...] = ()


class QualityMeasure(Part):
    """One distance from the reference's answers, and how far the reference is from itself."""

    setting: Setting
    measure: Measure
    unit: str
    value: float | None
    reference_against_itself: float | None = Field(
        description="the same distance of the reference from itself; of a task the standard error of the loss"
    )
    at_most: float | None
    passed: bool
    task: str | None = Field(None, description="of lm-evaluation-harness, with its metric")


class Quality(Part):
    """The verdict on the answers of a precision."""

    state: QualityState
    precision: Precision
    judged_in: int = Field(description="trial whose answers were judged")
    reference: int | None = Field(description="trial whose answers are the reference")
    known_prompts: str | None
    figures: tuple[QualityMeasure, ...] = ()
    reasons: tuple[str, ...] = ()


class Estimate(Part):
    """A figure and its interval."""

    value: float
    interval: Ends


class BasisFigures(Part):
    """What the goodput takes on one power basis; per facility megawatt: PUE counted."""

    basis: PowerBasis | Literal["node"]
    power_w: float
    facility_w: float
    tok_per_s_per_mw: Estimate
    tok_per_s_per_facility_mw: Estimate
    energy_per_mtok: Estimate | None = Field(description="cost of a million good tokens' energy")


class LedgerPart(Part):
    """Watts and money on every power basis that is known."""

    devices: int
    ranking: PowerBasis | None
    idle_share: float | None
    pue: float
    currency: str
    accelerator_hour: float | None
    rental_per_mtok: Estimate | None
    bases: tuple[BasisFigures, ...]
    remarks: tuple[str, ...]


class Figures(Part):
    """What was measured at the operating point; all null where nothing was, with a ``reason``."""

    trial: int | None = None
    engine: str | None = None
    configuration: dict[str, Any] | None = Field(None, description="words of the common vocabulary")
    command: str | None = Field(None, description="shell commands that serve it")
    goodput_tok_per_s: float | None = None
    goodput_tok_per_s_interval: Ends | None = None
    mean_power_w: float | None = None
    power_basis: PowerBasis | None = None
    power_source: str | None = None
    energy_verdict: EnergyVerdict | None = None
    energy_reasons: tuple[str, ...] | None = None
    tokens_per_joule: float | None = None
    tokens_per_joule_interval: Ends | None = None
    tok_per_s_per_mw: float | None = None
    attainment: float | None = None
    attainment_interval: Ends | None = None
    sla_verdict: SlaVerdict | None = None
    requests: int | None = None
    window_s: float | None = None
    window_ended: WindowEnd | None = None
    steady: bool | None = None
    ttft_s: dict[str, float] | None = Field(None, description="p50, p95, p99")
    tpot_s: dict[str, float] | None = Field(None, description="p50, p95, p99")
    capacity_rps: float | None = None
    operating_rps: float | None = None
    launches: int | None = Field(None, description="2: measured in the search, and again in a final launch")
    node: str | None = None
    quality: Quality | None = None
    ledger: LedgerPart | None = None
    reason: str | None = Field(None, description="why figures are withheld, or what to know of them")


class Beaten(Part):
    """By how much the recommended configuration beats another, on the measure that ranks."""

    who: Literal["engine defaults", "production", "runner-up"]
    trial: int | None
    configuration: dict[str, Any] | None
    measure: Literal["tokens_per_joule", "goodput_tok_per_s"] | None
    ratio: float | None
    ratio_interval: Ends | None
    shown: bool | None = Field(description="whether the whole interval lies above 1")
    reason: str | None


class LoadLimit(Part):
    """What one replica carries: scale out where its load would pass ``operating_rps``."""

    capacity_rps: float = Field(description="highest offered load at which the SLA held")
    operating_rps: float = Field(description="load that the figures are of")
    headroom: float = Field(description="operating point / capacity that the study asked for")
    operating_rps_per_device: float
    devices_per_replica: int
    concurrency: float | None = Field(
        description="mean requests in the engine at the operating point, by its own counters"
    )


class DeviceFacts(Part):
    """One device of the node, as far as it says."""

    uid: str
    power_limit_w: float | None = None
    nvlinks_up: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None


class Fingerprint(Part):
    """What the figures depend on: another of any of these is another measurement."""

    model: str
    model_revision: str | None = Field(description="null: not pinned, the hub's newest was served")
    engine: str
    engine_version: str
    device: str
    device_count: int
    driver: str
    topology: tuple[DeviceFacts, ...] = ()
    node: str
    kernel: str
    workload: str
    workload_sha256: str
    study: str
    study_sha256: str
    package: str = Field(description="version of autotune")


class Expiry(Part):
    """When the contract ends by itself: at a date, or with the first change of what it names."""

    at: str = Field(description="date and time, ISO 8601")
    on_change_of: tuple[str, ...]


class Relaxation(Part):
    """One SLO of an SLA that nothing met, relaxed: what would keep it then, at one measured load."""

    slo: str
    relaxed: str
    trial: int
    rate_rps: float
    goodput_tok_per_s: float
    objective: float


class UnmetSla(Part):
    """What came nearest to an SLA that nothing met; ``shares`` are of requests that keep each SLO alone."""

    trial: int
    rate_rps: float
    attainment: float
    wanted: float
    binding: str = Field(description="the SLO in the way: the one that fewest requests keep")
    shares: dict[str, float]
    offers: tuple[Relaxation, ...] = Field(description="what each relaxation would buy; not confirmed")


class Spent(Part):
    """What the study cost so far."""

    launches: int
    accelerator_hours: float
    energy_kwh: float | None
    power_basis: PowerBasis | None


class SlaAnswer(Figures):
    """The answer for one SLA."""

    name: str
    contract: str = Field(description="the SLA in one line")
    sla: Sla
    workload: str
    evidence: EvidenceLevel | None = None
    deployment: Deployment | None = Field(None, description="engine arguments, environment, processes")
    deployment_reason: str | None = Field(None, description="why there is none")
    baseline: Figures = Field(description="the engine's defaults, on the same workload")
    production: Figures | None = Field(None, description="null: the study names no baseline")
    beats: tuple[Beaten, ...] = ()
    load: LoadLimit | None = None
    fleet: FleetPlan | None = Field(None, description="null: no peak rate was asked for")
    fleet_reason: str | None = None
    fingerprint: Fingerprint | None = None
    expires: Expiry | None = None
    unmet: UnmetSla | None = Field(None, description="null: something met it, or nothing was measured")
    withheld: tuple[str, ...] = Field((), description="what is withheld here, each with its reason")


class Measuring(Part):
    """How the figures were measured: enough to measure them again."""

    workloads: tuple[Workload, ...]
    measurement: MeasurementSpec
    prices: Prices
    environment: str | None = Field(None, description="the engine's virtual environment, where one was named")
    seed: int = 0


class RecommendationDocument(Part):
    """A recommendation per SLA of a study."""

    model_config = ConfigDict(title="autotune recommendation")

    schema_version: Literal["1"] = "1"
    study: str
    measured_at: str | None
    spent: Spent | None = None
    measuring: Measuring
    slas: tuple[SlaAnswer, ...]

    def sla(self, name: str) -> SlaAnswer | None:
        """The answer for one SLA; None where the document has none of that name."""
        return next((each for each in self.slas if each.name == name), None)

    def only(self, name: str) -> Self:
        """The document with the answer of one SLA alone."""
        return self.model_copy(update={"slas": tuple(each for each in self.slas if each.name == name)})


def recommendation_schema() -> dict[str, Any]:
    """JSON Schema of recommendation documents as they are written."""
    return {"$schema": SCHEMA_ID, **RecommendationDocument.model_json_schema(mode="serialization")}
