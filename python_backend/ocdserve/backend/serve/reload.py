# SPDX-License-Identifier: Apache-2.0
"""Replacing the detector, and the recogniser if there is one, of a running server.

The new detector is loaded next to the old one, under names of its own, and has to answer a canary. Then all models hand
their requests on to it, within milliseconds; requests in flight end on the old one. When that is gone, the new one is
loaded under the models' own names, too. Until the switch a failure leaves the old detector serving, after it the new.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.serve.canary import CanaryError, run_canary
from ocdserve.backend.serve.generations import Generation
from ocdserve.backend.serve.log_lines import Incident
from ocdserve.backend.serve.memory import check_memory
from ocdserve.backend.serve.process.metrics import CANARIES, RELOADS
from ocdserve.backend.serve.process.processes import Stub, kill, retire
from ocdserve.backend.serve.server import TritonServer
from ocdserve.backend.serve.supervisor import Report, Supervisor
from ocdserve.contract import ASKED_MODELS, FUSED, NEXT, OCR_FUSED, InvalidInputError, UnavailableError

# How long requests in flight may take before the old detector's processes are killed.
_DRAIN_S = 120.0
# A canary that was shed is sent again.
_CANARIES = 5


@dataclass
class Source:
    """Where a server's detector comes from, and its recogniser.

    Attributes:
        publish: Writes the model repository that is served, with the bundles of a detector (None: the default one) and
            of a recogniser (None: none); None: somebody else publishes into it.
        bundle: The detector's bundle that is served; a reload changes it.
        recogniser: The recogniser's.
    """

    publish: Callable[[Path | None, Path | None], object] | None = None
    bundle: Path | None = None
    recogniser: Path | None = None

    def restore(self) -> None:
        """Write the repository again."""
        if self.publish:
            self.publish(self.bundle, self.recogniser)


class Reloader:
    """Reloads one server, one reload at a time."""

    def __init__(self, server: TritonServer, supervisor: Supervisor, source: Source, report: Report) -> None:
        """`report` is called with a sentence for each reload."""
        self._server = server
        self._supervisor = supervisor
        self._source = source
        self._report = report
        self._one_at_a_time = threading.Lock()

    def reload(self, bundle: Path | None = None, recogniser: Path | None = None) -> str:
        """Serve other bundles, or read the present ones, or the repository, again; returns a sentence about it.

        Raises:
            OcdserveError: It failed, and the old detector serves. What happened was reported.
        """
        with self._one_at_a_time:
            began = time.monotonic()
            try:
                message = f"{self._replace(bundle, recogniser)} after {time.monotonic() - began:.1f} s"
            except Exception as error:
                self._server.counters.count(RELOADS, "failed")
                said = f"the reload failed, and the detector that was served before goes on: {error}"
                self._report(Incident(said))
                raise
            # Triton's errors so far do not explain a later exit.
            self._server.log.mark()
            self._server.counters.count(RELOADS, "ok")
            self._report(message)
            return message

    def _replace(self, bundle: Path | None, recogniser: Path | None) -> str:
        source, generations = self._source, self._server.generations
        for name, given in (("bundle", bundle), ("recogniser", recogniser)):
            if source.publish is None and given is not None:
                raise InvalidInputError(
                    f"this server serves the repository {self._server.options.repository}: publish the {name} into it "
                    f"(`ocdserve publish`), then reload without --{name}"
                )
        if recogniser is not None and source.recogniser is None:
            raise InvalidInputError("this server does not read text: start it with --recogniser instead")
        chosen = source.bundle if bundle is None else bundle
        chosen_recogniser = source.recogniser if recogniser is None else recogniser
        if source.publish is not None:
            source.publish(chosen, chosen_recogniser)
        old, new = generations.current, generations.add()
        try:
            if (new.models, new.ensembles) != (old.models, old.ensembles) or not new.models:
                raise InvalidInputError(
                    f"the repository holds {', '.join((*new.models, *new.ensembles)) or 'no model of ocdserve'}; the "
                    f"server serves {', '.join((*old.models, *old.ensembles)) or 'none'}. Start it again instead."
                )
            change = _Change(self._server, self._supervisor, new)
            with self._supervisor.changing(change.on_death):
                how = change.run()
            source.bundle, source.recogniser = chosen, chosen_recogniser
        finally:
            generations.remove(new if generations.current is old else old)
        return f"the detector {new.digest} serves in place of {old.digest}{how}"


class _Change:
    """One change from a generation to the next; it ends with an error when Triton is started again meanwhile."""

    def __init__(self, server: TritonServer, supervisor: Supervisor, new: Generation) -> None:
        self._server = server
        self._generations = server.generations
        self._supervisor = supervisor
        self._starts, self._pid = server.starts, server.pid
        self._new = new
        self._old = self._known()
        self._next: list[str] = []
        self._fused = [name for name in (FUSED, OCR_FUSED) if name in new.models]
        # Those that are the new ones already.
        self._new_fused: list[str] = []
        self._switched = False
        self._dead = False

    def on_death(self) -> None:
        """A process that serves has died: end this change, so that its model can be loaded again."""
        self._dead = True
        if self._switched:
            self._server.abort()
        else:
            for stub in self._known() - self._old:
                kill(stub)

    def run(self) -> str:
        """Make the change.

        Returns:
            What went wrong after the switch, for the report: Triton was started again, with the new detector.

        Raises:
            UnavailableError: It failed before, and the old detector serves.
        """
        check_memory(self._old, self._server.gpus > 0)
        try:
            self._prepare()
            with self._generations.lock:
                self._check()
                self._switched, self._generations.current = True, self._new
        except Exception:
            self._roll_back()
            raise
        try:
            self._switch()
        except Exception as error:
            self._end_server()
            return f", by a start of Triton ({error}),"
        self._remove_next()
        return ""

    def _prepare(self) -> None:
        """Load the new detector and send it canaries; at the end the fused models are the new ones."""
        new = self._new
        for name in new.models:
            # A stand-in first: Triton is not ready while a model loads that it did not serve before.
            self._next.append(name + NEXT)
            self._load(name + NEXT, new.relays)
        for name in new.models:
            self._load(name + NEXT, new.folder)
        for name in new.ensembles:
            self._next.append(name + NEXT)
            self._load(name + NEXT, new.folder)
        for name in ASKED_MODELS:
            if name + NEXT in self._next:
                self._canary(name)
        for name in self._fused:
            # A model of its own is replaced by loading it: what was tried goes first, so that there are two, not three.
            self._load(name + NEXT, new.relays)
            self._retire([stub for stub in self._known() if stub.model == name + NEXT])
            self._new_fused.append(name)
            self._watch([name], set())
            before = self._known()
            self._load(name, new.folder)
            self._watch([name], self._known() - before)

    def _switch(self) -> None:
        """Hand all other requests on to the new detector, and load it under the steps' own names when the old is gone.

        A stand-in for the steps is one for direct requests only: the ensembles name the new steps themselves.
        """
        new = self._new
        steps = [name for name in new.models if name not in self._fused]
        self._watch(
            steps, (stub for stub in self._known() - self._old if stub.model in [name + NEXT for name in steps])
        )
        for name in (*new.ensembles, *steps):
            self._load(name, new.relays)
        self._retire(self._old)
        before = self._known()
        for name in steps:
            self._load(name, new.folder)
        self._watch(steps, self._known() - before)
        for name in new.ensembles:
            self._load(name, new.folder)

    def _roll_back(self) -> None:
        self._remove_next()
        for name in self._new_fused:
            if self._server.starts != self._starts:
                return
            with self._generations.lock:
                self._generations.link(name, self._generations.current.folder / name)
            before = self._known()
            try:
                self._supervisor.load(name, frozenset(before))
            except UnavailableError:
                self._end_server()
                return
            self._watch([name], self._known() - before)
            self._retire([stub for stub in before if stub.model == name])

    def _watch(self, models: Iterable[str], stubs: Iterable[Stub]) -> None:
        self._supervisor.watch(self._pid, models, list(stubs))

    def _load(self, name: str, folder: Path) -> None:
        with self._generations.lock:
            self._check()
            self._generations.link(name, folder / name)
        before = frozenset(stub for stub in self._known() if stub.model == name)
        if folder == self._new.folder and any(stub.model == name.removesuffix(NEXT) for stub in self._old):
            self._supervisor.load(name, before)
        else:
            self._server.api.load(name)
        self._check()

    def _check(self) -> None:
        if self._server.starts != self._starts:
            raise UnavailableError("Triton ended during the reload")
        if self._dead:
            raise UnavailableError("a Python process died during the reload")

    def _canary(self, name: str) -> None:
        for attempt in range(_CANARIES):
            try:
                run_canary(self._server.api, name, under=name + NEXT)
            except CanaryError as error:
                self._server.counters.count(CANARIES, error.cause)
                if error.cause != "busy" or attempt == _CANARIES - 1:
                    raise
            else:
                self._server.counters.count(CANARIES, "ok")
                return

    def _remove_next(self) -> None:
        """End what was loaded under names of its own: stand-ins first, behind which requests in flight are answered."""
        processes = {stub for stub in self._known() if stub.model.endswith(NEXT)}
        try:
            for name in self._next:
                with self._generations.lock:
                    if self._server.starts != self._starts:
                        return
                    if name.removesuffix(NEXT) in self._new.models:
                        self._generations.link(name, self._new.relays / name)
                    else:
                        self._generations.unlink(name)
                if name.removesuffix(NEXT) in self._new.models:
                    self._server.api.load(name)
                else:
                    self._server.api.unload(name)
            self._retire(processes)
            for name in self._next:
                self._server.api.unload(name)
                self._generations.unlink(name)
        except (UnavailableError, OSError):
            self._end_server()

    def _retire(self, stubs: Iterable[Stub]) -> None:
        retire(list(stubs), _DRAIN_S, self._supervisor.stopping, self._server.health_directory)

    def _end_server(self) -> None:
        """The supervisor starts Triton again, with the current generation alone."""
        if self._server.starts == self._starts:
            self._server.abort()

    def _known(self) -> set[Stub]:
        """The processes so far, dead or alive, of the models."""
        return {stub for stub in self._server.stubs() if stub.model.removesuffix(NEXT) in self._new.models}
