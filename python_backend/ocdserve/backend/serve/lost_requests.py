# SPDX-License-Identifier: Apache-2.0
"""Requests that a dead process has left in Triton, and that only the end of Triton ends, or ends soon.

Triton 2.51 gives up what is inside of `execute` when it notices, within a second, that the process is dead, and then
what waits in the model's queue, one batch per second. What a model has taken out of `execute`, to answer it later, it
never answers: only the dead process knew where the answer belongs.
"""

from collections.abc import Iterable

from ocdserve.backend.serve.process.health import take_lost
from ocdserve.backend.serve.process.processes import Stub
from ocdserve.backend.serve.server import TritonServer
from ocdserve.backend.serve.watchdog import waiting
from ocdserve.contract import MAX_BATCH_SIZE, MODELS

# How long requests may wait for their errors: a restart of Triton takes about as long.
_LONGEST_S = 5.0
_BATCHES_PER_S = 1.0


def why_restart(server: TritonServer, dead: Iterable[frozenset[Stub]]) -> str | None:
    """Why Triton has to be started again, as a sentence; None if no request needs it.

    Args:
        server: Whose processes are looked at, all of them.
        dead: The processes of each model of which some have just died.
    """
    for pid, count in take_lost(server.health_directory, server.pid or 0).items():
        model = next((stub.model for stub in server.stubs() if stub.pid == pid), "a model")
        number = "" if count is None else f"{count} "
        return f"{model}: Python process {pid} died with {number}requests, which only a restart of Triton ends"
    for stubs in dead:
        model = next(iter(stubs)).model
        if any(stub.alive() for stub in stubs) or model not in MODELS:
            continue
        requests = waiting(server, model)
        # Models that take images get one at a time.
        batch = 1 if MODELS[model].inputs[0].name == "IMAGE" else MAX_BATCH_SIZE
        if requests > batch * _BATCHES_PER_S * _LONGEST_S:
            return f"{model}: its Python process died while {requests} requests waited, which a restart of Triton ends"
    return None
