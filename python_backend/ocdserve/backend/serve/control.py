# SPDX-License-Identifier: Apache-2.0
"""How `ocdserve reload` and the launcher of a running server talk: by files in the launcher's private directory.

A request is a file there, its answer another one; only the user that started the server may enter the directory.
"""

import contextlib
import json
import os
import secrets
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.files import write_atomically
from ocdserve.backend.serve.process.ownership import launcher_of
from ocdserve.backend.serve.reload import Reloader
from ocdserve.backend.serve.server import TritonServer
from ocdserve.backend.serve.supervisor import Report
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError

_DIRECTORY, _SERVER = "control", "server.json"
_POLL_S = 0.1


class Control:
    """The launcher's side: reloads when it is asked to, in a thread of its own."""

    def __init__(self, server: TritonServer, reloader: Reloader, report: Report) -> None:
        self._server = server
        self._reloader = reloader
        self._report = report
        self._working: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a reload is in progress."""
        return self._working is not None and self._working.is_alive()

    def poll(self) -> None:
        """Begin with a request, if there is one; to be called often."""
        directory = self._server.workspace / _DIRECTORY
        # A cleaner of temporary directories may have removed the workspace.
        with contextlib.suppress(OSError):
            if not (directory / _SERVER).is_file():
                directory.mkdir(exist_ok=True)
                write_atomically(directory / _SERVER, json.dumps({"http": self._server.http_url}).encode())
            for request in () if self.busy else sorted(directory.glob("*.request")):
                given = json.loads(request.read_bytes())
                self.reload(given["bundle"], request, given.get("recogniser"))
                return

    def reload(self, bundle: str | None = None, request: Path | None = None, recogniser: str | None = None) -> None:
        """Begin with a reload; `request` is the file that asks for it, which goes when its answer is there."""
        bundles = [None if given is None else Path(given) for given in (bundle, recogniser)]
        self._working = threading.Thread(target=self._reload, args=(request, *bundles), name="reload", daemon=True)
        self._working.start()

    def _reload(self, request: Path | None, bundle: Path | None, recogniser: Path | None) -> None:
        result = {"done": False, "message": "the reload failed; the server's output has the details"}
        try:
            result = {"done": True, "message": self._reloader.reload(bundle, recogniser)}
        except OcdserveError as error:
            result["message"] = str(error)
        except Exception as error:
            self._report(f"the reload failed with {type(error).__name__}: {error}")
        finally:
            # Without it nobody waits any more.
            if request is not None and request.exists():
                with contextlib.suppress(OSError):
                    write_atomically(request.with_suffix(".answer"), json.dumps(result).encode())
                request.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunningServer:
    """A server of this user on this machine.

    Attributes:
        pid: Of its launcher.
        url: Of its HTTP.
        directory: Where requests are written.
    """

    pid: int
    url: str
    directory: Path

    @property
    def running(self) -> bool:
        """Whether its launcher still runs."""
        return launcher_of(self.directory.parent.name) is not None


def find_server(pid: int | None = None) -> RunningServer:
    """The running server with this launcher; None: the only one.

    Raises:
        UnavailableError: There is none.
        InvalidInputError: There are several.
    """
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"ocdserve-*/{_DIRECTORY}/{_SERVER}"):
        launcher = launcher_of(path.parent.parent.name)
        with contextlib.suppress(OSError):
            # Anybody may make a directory of that name.
            is_own = path.parent.parent.lstat().st_uid == os.getuid()
            if is_own and launcher is not None and pid in (None, launcher):
                found.append(RunningServer(launcher, json.loads(path.read_bytes())["http"], path.parent))
    if not found:
        whose = "" if pid is None else f" with the process id {pid}"
        raise UnavailableError(
            f"no server of yours{whose} runs here. `ocdserve serve` starts one; TMPDIR must be the same for both."
        )
    if len(found) > 1:
        listed = ", ".join(
            f"{server.pid} ({server.url})" for server in sorted(found, key=lambda server: (server.pid, server.url))
        )
        raise InvalidInputError(f"several servers run here: name one of these with --pid: {listed}")
    return found[0]


def ask_to_reload(server: RunningServer, bundle: Path | None, recogniser: Path | None = None) -> str:
    """Have a server reload, with other bundles where they are given; returns its sentence about it.

    Raises:
        UnavailableError: It failed.
    """
    # What is built in is no path, unless there is such a folder.
    named = {
        name: None if path is None else str(path.absolute() if path.exists() else path)
        for name, path in (("bundle", bundle), ("recogniser", recogniser))
    }
    request = server.directory / f"{time.time_ns()}-{secrets.token_hex(4)}.request"
    answer = request.with_suffix(".answer")
    try:
        write_atomically(request, json.dumps(named).encode())
        while not answer.exists():
            if not server.running:
                raise UnavailableError("the server ended before the reload was done")
            # The directory goes when the server ends, and is made again when somebody else has removed it.
            if (server.directory / _SERVER).exists() and not request.exists() and not answer.exists():
                raise UnavailableError("the server's answer was lost; its output says what became of the reload")
            time.sleep(_POLL_S)
        result = json.loads(answer.read_bytes())
    except OSError as error:
        raise UnavailableError(f"the server cannot be asked: {error}") from error
    finally:
        for path in (request, answer):
            path.unlink(missing_ok=True)
    if not result["done"]:
        raise UnavailableError(
            f"the reload failed, and the detector that was served before goes on: {result['message']}"
        )
    return str(result["message"])
