# SPDX-License-Identifier: Apache-2.0
"""How much a machine can serve within a latency limit, and the best tuning for it."""

from ocdserve.perf.capacity.bench import Bench, ServedBench, served_bench
from ocdserve.perf.capacity.search import Capacity, Trial, find_capacity
from ocdserve.perf.capacity.sweep import Candidate, CapacityPlan, Outcome, candidates, find_best, queue_size

__all__ = [
    "Bench",
    "Candidate",
    "Capacity",
    "CapacityPlan",
    "Outcome",
    "ServedBench",
    "Trial",
    "candidates",
    "find_best",
    "find_capacity",
    "queue_size",
    "served_bench",
]
