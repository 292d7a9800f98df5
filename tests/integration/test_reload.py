# SPDX-License-Identifier: Apache-2.0
"""The detector of a running server is replaced: nothing fails, nothing mixes, whatever dies meanwhile."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import ServeOptions, Supervisor, TritonServer
from ocdserve.backend.serve.canary import CanaryError
from ocdserve.backend.serve.process.processes import Stub
from ocdserve.backend.serve.reload import Reloader, Source
from ocdserve.client import Retry, TextDetector
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError
from ocdserve.results.detections import Detections
from tests.campaigns.clients import Target
from tests.campaigns.reload import reload
from tests.campaigns.serving import Server, pictures, serving, small_bundle

pytestmark = pytest.mark.triton

CLIENTS = (("http", "ocdnet"), ("grpc", "ocdnet"), ("http", "ocdnet_fused"), ("grpc", "ocdnet_fused"))
IMAGES = pictures()[:2]
# Quads and scores of each image.
Answers = list[bytes]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Two detectors that answer differently."""
    folder = tmp_path_factory.mktemp("bundles")
    return [small_bundle(folder / str(side), side) for side in (192, 160)]


def folder_of(bundle: Bundle) -> Path:
    return bundle.model_path.parent


def generation(target: Target, model: str) -> str:
    connection = target.connection()
    connection.request("GET", f"/v2/models/{model}/config")
    config = json.loads(connection.getresponse().read())
    connection.close()
    return str(config["parameters"]["generation"]["string_value"])


@pytest.fixture(scope="module")
def expected(bundles: list[Bundle]) -> list[Answers]:
    """What each detector answers, computed in this process."""
    found = []
    for bundle in bundles:
        detector = Detector.load(folder_of(bundle))
        found.append([bytes_of(detector.detect(image)) for image in IMAGES])
    assert not any(first == second for first, second in zip(*found, strict=True))
    return found


def bytes_of(found: Detections) -> bytes:
    return found.quads.tobytes() + found.scores.tobytes()


def client(target: Target, protocol: str, model: str) -> TextDetector:
    return TextDetector(f"{protocol}://{getattr(target, protocol)}", model=model, retry=Retry(attempts=1))


def assert_serves(target: Target, answers: Answers) -> None:
    """All models answer like one detector."""
    for protocol, model in CLIENTS:
        with client(target, protocol, model) as detector:
            assert [bytes_of(detector.detect(image)) for image in IMAGES] == answers


def serves(target: Target) -> bool:
    try:
        for protocol, model in CLIENTS:
            with client(target, protocol, model) as detector:
                detector.detect(IMAGES[0])
    except OcdserveError:
        return False
    return True


class Clients:
    """A closed-loop client of each protocol and model within a `with` block; remembers every answer and error."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=client) for client in CLIENTS]
        self.answers: list[tuple[int, bytes]] = []
        self.errors: list[str] = []

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, protocol: str, model: str) -> None:
        with client(self._target, protocol, model) as detector:
            while not self._stop.is_set():
                for index, image in enumerate(IMAGES):
                    try:
                        self.answers.append((index, bytes_of(detector.detect(image))))
                    except OcdserveError as error:
                        self.errors.append(str(error))

    def assert_right(self, *allowed: Answers) -> None:
        """Each answer is of one of the detectors, and each of these answered some."""
        seen = [sum(answer == answers[index] for index, answer in self.answers) for answers in allowed]
        assert all(seen) and sum(seen) == len(self.answers), seen


def test_under_load_every_answer_is_of_one_detector_and_a_broken_bundle_changes_nothing(
    bundles: list[Bundle], expected: list[Answers], tmp_path: Path
) -> None:
    broken = shutil.copytree(folder_of(bundles[0]), tmp_path / "broken")
    (broken / "manifest.json").unlink()
    (broken / "model.onnx").write_bytes(b"no network")
    with serving(folder_of(bundles[0])) as server:
        assert generation(server.target, "ocdnet") == bundles[0].digest()
        with Clients(server.target) as clients:
            code, text = reload(server, folder_of(bundles[1]))
        said = f"the detector {bundles[1].digest()} serves in place of {bundles[0].digest()}"
        assert (code, text.partition(" after ")[0]) == (0, said)
        assert any(line.startswith(f"ocdserve: {said}") for line in server.lines())
        assert [generation(server.target, model) for model in ("ocdnet", "ocdnet_raw")] == [bundles[1].digest()] * 2
        assert clients.errors == []
        clients.assert_right(*expected)

        code, text = reload(server, broken)
        assert (code, text.partition(": load of model")[0]) == (
            1,
            "ocdserve reload: the reload failed, and the detector that was served before goes on",
        )
        assert "is no readable ONNX file" in text
        assert "\n" not in text
        assert_serves(server.target, expected[1])
        assert server.restarts() == []


@pytest.mark.long
def test_without_a_terminal_sighup_reads_the_bundle_again(
    bundles: list[Bundle], expected: list[Answers], tmp_path: Path
) -> None:
    bundle = shutil.copytree(folder_of(bundles[0]), tmp_path / "bundle")
    with serving(bundle) as server:
        shutil.rmtree(bundle)
        shutil.copytree(folder_of(bundles[1]), bundle)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: generation(server.target, "ocdnet") == bundles[1].digest())
        wait_until(lambda: any("serves in place of" in line for line in server.lines()))
        assert_serves(server.target, expected[1])


@pytest.mark.long
def test_a_repository_that_is_published_over_is_served_after_a_reload_and_never_in_part(
    bundles: list[Bundle], expected: list[Answers], tmp_path: Path
) -> None:
    repository = publish(PublishOptions(tmp_path / "models", folder_of(bundles[0])))
    with serving(None, "--repository", str(repository)) as server:
        publish(PublishOptions(repository, folder_of(bundles[1])))
        with Clients(server.target) as clients:
            os.kill(preprocess(server), signal.SIGKILL)
            wait_until(lambda: any("serves again" in line for line in server.lines()))
            time.sleep(1.0)
        clients.assert_right(expected[0])

        code, text = reload(server, folder_of(bundles[1]))
        assert code == 1
        assert f"this server serves the repository {repository}: publish the bundle into it" in text
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: generation(server.target, "ocdnet") == bundles[1].digest())
        assert_serves(server.target, expected[1])


def preprocess(server: Server) -> int:
    (found,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (arguments := arguments_of(entry)) and f"-{server.pid}-" in arguments
        if "/ocdnet_preprocess/1/model.py" in arguments
    ]
    return found


def arguments_of(entry: Path) -> str:
    with contextlib.suppress(OSError):
        return (entry / "cmdline").read_bytes().decode(errors="replace")
    return ""


def wait_until(condition: Callable[[], object], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Served:
    """A supervised server of this process that can be reloaded."""

    def __init__(self, server: TritonServer, supervisor: Supervisor, reloader: Reloader) -> None:
        self.server = server
        self.supervisor = supervisor
        self.reloader = reloader
        self.target = Target(f"127.0.0.1:{server.ports.http}", f"127.0.0.1:{server.ports.grpc}")

    def stubs(self, *models: str) -> list[Stub]:
        return [stub for stub in self.server.stubs() if stub.model in models and stub.alive()]


@pytest.fixture
def served(bundles: list[Bundle], tmp_path: Path) -> Iterator[Served]:
    repository = tmp_path / "models"
    source = Source(lambda bundle, _: publish(PublishOptions(repository, bundle)), folder_of(bundles[0]))
    source.restore()
    options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options, source.restore) as server:
        supervisor = Supervisor(server, print)
        supervisor.start()
        try:
            yield Served(server, supervisor, Reloader(server, supervisor, source, print))
        finally:
            supervisor.stop()
            server.kill()


@pytest.mark.long
def test_a_failed_canary_and_a_lack_of_memory_leave_the_old_detector(
    served: Served, bundles: list[Bundle], expected: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = {stub.pid for stub in served.stubs("ocdnet_network", "ocdnet_fused")}
    asked: list[str] = []

    def wrong(api: object, model: str, under: str) -> int:
        asked.append(under)
        raise CanaryError("canary of ocdnet_next: QUADS has coordinates that are no finite numbers", "wrong")

    with Clients(served.target) as clients:
        with monkeypatch.context() as patch:
            patch.setattr("ocdserve.backend.serve.reload.run_canary", wrong)
            with pytest.raises(CanaryError, match="no finite numbers"):
                served.reloader.reload(folder_of(bundles[1]))
        with monkeypatch.context() as patch:
            patch.setattr("ocdserve.backend.serve.memory.free_bytes", lambda: 100 << 20)
            with pytest.raises(UnavailableError, match=r"needs \d{3} MiB of memory .* and 100 MiB are free"):
                served.reloader.reload(folder_of(bundles[1]))
        with pytest.raises(InvalidInputError, match="is no bundle"):
            served.reloader.reload(Path("/nowhere"))
    assert clients.errors == []
    clients.assert_right(expected[0])
    assert asked == ["ocdnet_next"]
    assert {stub.pid for stub in served.stubs("ocdnet_network", "ocdnet_fused")} == stubs
    assert served.stubs("ocdnet_network_next", "ocdnet_fused_next") == []
    assert sorted(path.name for path in served.server.generations.served.iterdir()) == sorted(first_models())
    # SIGHUP after a failure reads the bundle that is served.
    served.reloader.reload()
    assert_serves(served.target, expected[0])


def first_models() -> list[str]:
    return ["ocdnet", "ocdnet_fused", "ocdnet_network", "ocdnet_postprocess", "ocdnet_preprocess", "ocdnet_raw"]


@pytest.mark.long
@pytest.mark.parametrize("moment", ["ocdnet_network_next", "ocdnet_postprocess_next", "switched"])
@pytest.mark.parametrize("victim", ["old", "new", "server"])
def test_after_a_kill_during_a_reload_one_detector_serves(
    served: Served, bundles: list[Bundle], expected: list[Answers], victim: str, moment: str
) -> None:
    outcome: list[str] = []

    def run() -> None:
        try:
            outcome.append(served.reloader.reload(folder_of(bundles[1])))
        except OcdserveError as error:
            outcome.append(f"failed: {error}")

    old = served.stubs("ocdnet_network", "ocdnet_preprocess", "ocdnet_fused")
    thread = threading.Thread(target=run)
    thread.start()
    if moment == "switched":
        wait_until(lambda: generation(served.target, "ocdnet") == bundles[1].digest())
    else:
        wait_until(lambda: served.stubs(moment))
        time.sleep(0.3)
    if victim == "server":
        assert served.server.pid is not None
        os.kill(served.server.pid, signal.SIGKILL)
    elif victim == "old":
        with contextlib.suppress(ProcessLookupError):
            os.kill(old[0].pid, signal.SIGKILL)
    else:
        new = served.stubs("ocdnet_network_next", "ocdnet_postprocess_next", "ocdnet_preprocess_next")
        os.kill(new[-1].pid, signal.SIGKILL)
    thread.join(120)
    assert len(outcome) == 1

    wait_until(lambda: served.server.ready() and serves(served.target))
    now = 0 if outcome[0].startswith("failed") else 1
    assert [generation(served.target, model) for model in ("ocdnet", "ocdnet_raw")] == [bundles[now].digest()] * 2
    assert_serves(served.target, expected[now])
    # It can be reloaded, and has no process too many.
    served.reloader.reload(folder_of(bundles[0]))
    assert_serves(served.target, expected[0])
    alive = [stub for stub in served.server.stubs() if stub.alive()]
    assert sorted(stub.model for stub in alive) == [
        "ocdnet_fused",
        "ocdnet_network",
        "ocdnet_postprocess",
        "ocdnet_preprocess",
    ]
    assert_notes_are_of(served.server.health_directory, alive)


def assert_notes_are_of(directory: Path, stubs: list[Stub]) -> None:
    noted = {int(note.name.rpartition("-")[2]) for note in directory.glob("[!.]*-[1-9]*")}
    assert noted == {stub.pid for stub in stubs}


@pytest.mark.long
def test_a_reload_does_not_disturb_a_start_of_triton(
    served: Served, bundles: list[Bundle], expected: list[Answers]
) -> None:
    first = served.server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: served.server.pid != first)
    second = served.server.pid
    while not served.server.ready():
        with pytest.raises(UnavailableError, match="try again later"):
            served.reloader.reload(folder_of(bundles[1]))
        time.sleep(0.1)
    wait_until(lambda: serves(served.target))
    assert served.server.pid == second
    assert_serves(served.target, expected[0])
