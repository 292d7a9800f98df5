# SPDX-License-Identifier: Apache-2.0
"""Peers in processes of their own: the protocol with a stub, and each peer that is installed on a drawn picture."""

import os
import sys
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.conditions import Condition
from ocdserve.perf.subjects import READ_ALWAYS, licence_of, peer_worker, peers
from ocdserve.perf.subjects.peers import PeerProcess, cpu_s, load_peer

REPOSITORY = Path(__file__).resolve().parents[3]
# A peer that finds a box as wide as the image has bytes, prints while it works, and fails on some images.
STUB = f"""
import os, sys, time
sys.path.insert(0, {os.path.dirname(peer_worker.__file__)!r})
from peer_worker import serve

def load():
    if sys.argv[1] == "broken":
        raise ImportError("no such thing")
    print("loaded", flush=True)
    return answer

def answer(encoded):
    print("working", flush=True)
    if encoded == b"fail":
        raise ValueError("cannot read it")
    if encoded == b"die":
        os._exit(7)
    if encoded == b"hang":
        time.sleep(600)
    if encoded == b"none":
        return [], []
    if encoded == b"work":
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    width = float(len(encoded))
    return [[[0, 0], [width, 0], [width, 2], [0, 2]]], ["déjà"]

serve(load)
"""


def stub(kind: str = "works") -> PeerProcess:
    return PeerProcess([sys.executable, "-I", "-c", STUB, kind])


def test_a_process_answers_images_of_any_size_and_ends_with_its_object(capfd: pytest.CaptureFixture[str]) -> None:
    peer = stub()
    # More than a pipe holds, with every byte; and nothing found.
    for encoded in (b"abc", bytes(range(256)) * 1000, b""):
        quads, texts = peer(encoded)
        width = len(encoded)
        assert quads.dtype == np.float32
        assert quads.tolist() == [[[0, 0], [width, 0], [width, 2], [0, 2]]]
        assert texts == ["déjà"]
    quads, texts = peer(b"none")
    assert quads.shape == (0, 4, 2) and texts == []
    process = peer._process
    del peer
    assert process.returncode == 0
    # What the peer prints goes elsewhere.
    assert capfd.readouterr() == ("", "loaded\nworking\nworking\nworking\nworking\n")


def test_its_cpu_time_is_counted() -> None:
    peer = stub()
    begin = cpu_s()
    peer(b"work")
    assert 0.1 <= cpu_s() - begin < 1
    assert peer.cpu_s >= 0.1


@pytest.mark.parametrize(
    ("image", "message"), [(b"fail", "ValueError: cannot read it"), (b"die", "its process ended with code 7")]
)
def test_a_process_that_fails_has_ended(image: bytes, message: str) -> None:
    peer = stub()
    with pytest.raises(UnavailableError, match=message):
        peer(image)
    assert peer._process.returncode is not None
    cpu_s()


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = stub()
    monkeypatch.setattr(peers, "_PATIENCE_S", 0.2)
    with pytest.raises(UnavailableError, match="its process ended with code -9"):
        peer(b"hang")


def test_what_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="ImportError: no such thing"):
        stub("broken")
    with pytest.raises(UnavailableError, match="absent cannot be started: No such file or directory"):
        PeerProcess([str(tmp_path / "absent")])


def test_a_peer_that_is_not_installed_names_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCDSERVE_PEERS", str(tmp_path))
    python = tmp_path / "rapidocrlite" / "bin" / "python"
    with pytest.raises(UnavailableError, match=rf"{python} is not here; scripts/install_peers.sh installs it, and OC"):
        load_peer("rapidocrlite+Indra", 1)
    assert (REPOSITORY / "scripts/install_peers.sh").is_file()


@pytest.mark.parametrize("name", peer_worker.PEERS)
def test_every_peer_finds_the_lines_of_a_drawn_page(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    try:
        peer = load_peer(name, 1)
    except UnavailableError as error:
        pytest.skip(str(error))
    page = Condition("one", "page", size=32, page=(480, 120), script="Latin lines").draw(0)
    quads, texts = peer(page.encoded)
    # Indra cuts one of the lines in two.
    assert quads.shape == (len(page.truth.texts) + (name == "rapidocrlite+Indra"), 4, 2)
    assert sorted(texts) == (sorted(page.truth.texts) if name in READ_ALWAYS else [])
    # One thread: the process takes no more CPU time than a single thread can.
    assert len(os.listdir(f"/proc/{peer._process.pid}/task")) <= 2


def test_licences_are_those_of_the_packages() -> None:
    peers = {name: REPOSITORY / ".tools/peers" / package for name, (package, _) in peer_worker.PEERS.items()}
    for name, environment in peers.items():
        for file in environment.glob(f"lib/*/site-packages/{environment.name.replace('-', '_')}-*.dist-info/METADATA"):
            lines = file.read_text("utf-8").splitlines()
            assert f"License: {licence_of(name)}" in lines or any(
                line == f"License-Expression: {licence_of(name).partition(';')[0]}" for line in lines
            )
    for name in ("RapidOCR", "ocdserve", "ocdserve-fast"):
        assert licence_of(name) == metadata(name.partition("-")[0].lower())["License-Expression"] == "Apache-2.0"
