"""The metrics of a server, gathered when they are asked for: calls, phases, queue, bundles, the process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gr2.serving.access.calls import Admission
from gr2.serving.bundles.repository import Repository
from gr2.serving.models.outcomes import Outcome
from gr2.serving.observing.exposition import Family, render
from gr2.serving.observing.histogram import Histogram
from gr2.serving.observing.observer import Observer
from gr2.version import __version__

__all__ = ["ServerMetrics"]

Source = Callable[[], Iterable[Family]]


class ServerMetrics:
    """Everything that `/metrics` shows. `sources` may be added to; each is asked at every scrape."""

    def __init__(
        self,
        observer: Observer,
        admission: Admission,
        repository: Repository,
        phases: Callable[[], Mapping[str, Histogram]],
        serving: Callable[[], bool],
    ) -> None:
        self._observer, self._admission, self._repository = observer, admission, repository
        self._phases, self._serving = phases, serving
        self._started = time.time()
        self.sources: list[Source] = [self._calls, self._queue, self._bundles, self._caches, self._process]

    def text(self) -> str:
        """All of it in Prometheus' text format."""
        return render(family for source in self.sources for family in source())

    def _calls(self) -> Iterable[Family]:
        codes = Family("gr2_requests_total", "counter", "Rerank and ModelInfer calls that have ended, by status.")
        # A rate needs a series from the first scrape on.
        for code, count in self._observer.codes.items():
            codes.add(count, status=code)
        yield codes
        about = "Seconds from when a call's message was there to its answer, of calls answered."
        yield Family("gr2_request_duration_seconds", "histogram", about).histogram(self._observer.durations.read())
        phases = Family("gr2_phase_duration_seconds", "histogram", "Seconds of each phase of a request.")
        for name, histogram in self._phases().items():
            phases.histogram(histogram, phase=name)
        yield phases

    def _queue(self) -> Iterable[Family]:
        admission = self._admission
        yield Family("gr2_requests_pending", "gauge", "Calls at work or waiting.").add(admission.pending)
        about = "Calls at work or whose answer has not left yet."
        yield Family("gr2_calls_open", "gauge", about).add(len(admission.open))
        yield Family("gr2_requests_capacity", "gauge", "Calls that may be at work or wait.").add(admission.bound)
        stats = admission.core.stats()
        outcomes = Family("gr2_outcomes_total", "counter", "What became of requests, by outcome.")
        for outcome, count in zip(Outcome, stats["outcomes"], strict=True):
            outcomes.add(count, outcome=outcome.name.lower())
        yield outcomes
        waiting = Family("gr2_requests_waiting", "gauge", "Requests that wait for a worker.")
        for priority, count in zip(("high", "low"), stats["waiting"], strict=True):
            waiting.add(count, priority=priority)
        yield waiting
        about = "Seconds that a request of low priority which came now would wait."
        yield Family("gr2_expected_wait_seconds", "gauge", about).add(stats["expected_wait_ns"] / 1e9)
        yield Family("gr2_serving", "gauge", "1 while health says SERVING.").add(self._serving())

    def _bundles(self) -> Iterable[Family]:
        info = Family("gr2_bundle_info", "gauge", "1 for each bundle that is served.")
        age = Family("gr2_bundle_served_seconds", "gauge", "Seconds since the bundle took its place.")
        swaps = Family("gr2_bundle_swaps_total", "counter", "Versions that took the place of another.")
        refusals = Family("gr2_bundle_refusals_total", "counter", "Versions that were refused.")
        draining = Family("gr2_bundle_draining", "gauge", "Replaced versions that requests still use.")
        behind = Family("gr2_bundle_behind", "gauge", "1 if another version is wanted than is served.")
        for each in self._repository.status():
            if each.bundle is not None:
                info.add(1, bundle=each.name, label=each.label, version=each.bundle.version, device=each.device)
                age.add(each.served_seconds, bundle=each.name)
            swaps.add(each.swaps, bundle=each.name)
            refusals.add(each.refusals, bundle=each.name)
            draining.add(each.draining, bundle=each.name)
            behind.add(bool(each.reason), bundle=each.name)
        return (info, age, swaps, refusals, draining, behind)

    def _caches(self) -> Iterable[Family]:
        """The encoded histories that each bundle keeps; a bundle's counts begin with it."""
        counters = {
            "hits": Family("gr2_cache_hits_total", "counter", "Histories found encoded."),
            "misses": Family("gr2_cache_misses_total", "counter", "Histories that had to be encoded."),
            "evicted": Family("gr2_cache_evictions_total", "counter", "Encoded histories that gave way to others."),
            "entries": Family("gr2_cache_entries", "gauge", "Encoded histories kept."),
            "bytes": Family("gr2_cache_bytes", "gauge", "Memory that they take."),
        }
        capacity = Family("gr2_cache_capacity_bytes", "gauge", "Memory that they may take.")
        for each in self._repository.status():
            if each.bundle is None:
                continue
            with self._repository.lease(each.name) as engine:
                cache = engine.cache
            if cache is not None:
                for name, count in cache.counts().items():
                    counters[name].add(count, bundle=each.name)
                capacity.add(cache.capacity, bundle=each.name)
        return (*counters.values(), capacity)

    def _process(self) -> Iterable[Family]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield Family("gr2_build_info", "gauge", "1, labelled with gr2's version.").add(1, version=__version__)
        seconds = usage.ru_utime + usage.ru_stime
        yield Family("process_cpu_seconds_total", "counter", "User and system seconds.").add(seconds)
        yield Family("process_start_time_seconds", "gauge", "Unix time of the start.").add(self._started)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE")
        yield Family("process_resident_memory_bytes", "gauge", "Resident memory.").add(resident)
        open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        yield Family("process_open_fds", "gauge", "Open file descriptors.").add(open_files)
