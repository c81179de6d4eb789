"""What Prometheus scrapes: studies and trials of the store, and how this server fares."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from autotune.adapters.store.catalog import SqlCatalog

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Next = Callable[[Request], Awaitable[Response]]


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, catalog: SqlCatalog) -> None:
        self._catalog = catalog
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(
            "autotune_http_requests", "Requests answered.", labels, registry=self._registry
        )
        self._seconds = Histogram(
            "autotune_http_request_seconds", "Time to answer.", ("route",), registry=self._registry
        )
        self._registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Studies by status and trials by state, as the store has them now."""
        studies = GaugeMetricFamily("autotune_studies", "Studies by status.", labels=["status"])
        trials = GaugeMetricFamily("autotune_trials", "Trials by state.", labels=["state"])
        for status, count in self._catalog.studies_by_status().items():
            studies.add_metric([status], count)
        for state, count in self._catalog.trials_by_state().items():
            trials.add_metric([state], count)
        yield studies
        yield trials

    async def observe(self, request: Request, call_next: Next) -> Response:
        """Middleware: count an answer under the route that gave it."""
        began_s = time.monotonic()
        response = await call_next(request)
        # The route's own template: paths as asked would be a label each.
        route = getattr(request.scope.get("route"), "path", "other")
        self._requests.labels(request.method, route, str(response.status_code)).inc()
        self._seconds.labels(route).observe(time.monotonic() - began_s)
        return response

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
