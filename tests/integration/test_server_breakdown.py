# SPDX-License-Identifier: Apache-2.0
"""The steps of real requests, as the real server's statistics report them."""

from typing import Any

import pytest

from ocdserve.contract import ENSEMBLE, NETWORK
from ocdserve.perf.inputs.pictures import street
from ocdserve.perf.sections.server_breakdown import PARTS, REST, STEPS, ServedStages

pytestmark = pytest.mark.triton


def test_one_request_takes_time_in_every_step_and_most_of_it_in_the_network(default_server: Any) -> None:
    stages = ServedStages(default_server.grpc_url, ENSEMBLE)
    try:
        first, second = stages(street().png()), stages(street().png())
    finally:
        stages.close()
    for found in (first, second):
        assert list(found) == [f"{step} {part}" for step in STEPS[ENSEMBLE] for part in PARTS] + [REST]
        longest = max(found, key=lambda stage: found[stage])
        assert longest == f"{NETWORK} infer"
