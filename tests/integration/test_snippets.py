# SPDX-License-Identifier: Apache-2.0
"""Every snippet and command of the documentation runs, or says why not.

A page is one session: its `sh` and `python` blocks run in order in one folder with the files that the pages name. A
comment before a block says otherwise: `<!-- long -->` for minutes, `<!-- not run: REASON -->` for never.
`make test` runs the rest in the tests' environment against one server; `make test-long` runs everything in a checkout
of its own, whose environment is made by the commands of the pages, beginning with README's `make demo`.
"""

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.serve import TritonServer
from ocdserve.perf.inputs.pictures import Picture, demo_pictures, receipt, street

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_PAGES = ("CHANGELOG.md", "docs/decisions/", "perf/results/")
BLOCK = re.compile(r"(?:<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<language>sh|python)\n(?P<text>.*?)^```$", re.M | re.S)
# The pages' `sh` is POSIX's: dash knows nothing else.
SHELL = shutil.which("dash") or "sh"
GRPC, HTTP = "127.0.0.1:8001", "127.0.0.1:8000"
# Its extra brings PyTorch, too large to install once more: the page runs in the tests' environment, and only in the
# long run, for it trains.
TRAINING = "docs/training.md"
# What installs, and the server that the fixture is: the checkout of the long run begins with them.
INSTALLS = re.compile(r"^(make |\.venv/bin/python -m pip |\.venv/bin/ocdserve serve\b)")
SERVES = re.compile(r"^\.venv/bin/ocdserve (serve|play)\b")
# Runs a server in the background until it says that it is ready; a page has one at a time.
BACKGROUND = """set -eu
server=
stop() { if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" || true; server=; fi; }
trap stop EXIT
background() {
    stop
    "$@" >server.log 2>&1 &
    server=$!
    tries=0
    until grep -q 'ready: \\|http://' server.log; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2>/dev/null; then cat server.log >&2; exit 1; fi
        sleep 0.1
    done
}
set -x
"""
# Of TAO's command, with the files of the fixture.
SPEC = """
results_dir: results
gen_trt_engine: {onnx_file: ocdnet.onnx, trt_engine: ocdnet.engine, tensorrt: {data_type: fp32}}
dataset: {validate_dataset: {data_path: [labelled]}}
evaluate: {trt_engine: ocdnet.engine}
inference: {trt_engine: ocdnet.engine, input_folder: scans}
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language ("sh", "python"), text, and the comment before it ("" for none)."""

    page: str
    language: str
    text: str
    marker: str

    @property
    def reason(self) -> str | None:
        """Why it never runs; None if it does."""
        return self.marker.removeprefix("not run: ") if self.marker.startswith("not run: ") else None


def pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in sorted(listed.stdout.split()) if not name.startswith(NOT_PAGES)]


def blocks_of(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text("utf-8")
    return [Block(page, one["language"], one["text"], one["marker"] or "") for one in BLOCK.finditer(text)]


BLOCKS = [block for page in pages() for block in blocks_of(page)]


def in_pages(*, long: bool) -> list[str]:
    """Pages with something to run."""
    runs = [one for one in BLOCKS if one.reason is None and (long or one.marker != "long") and one.page != TRAINING]
    return sorted({one.page for one in runs if long or not all(map(INSTALLS.match, one.text.splitlines()))})


def script(blocks: list[Block], addresses: dict[str, str], *, long: bool) -> tuple[str, str]:
    """A page as one shell script, and its Python, which is one program and runs where its last block is."""
    lines, python = [], []
    last = max((number for number, block in enumerate(blocks) if block.language == "python"), default=None)
    ports = {name: free_port() for name in ("http", "grpc", "metrics")} if long else {}
    if long:
        addresses = {HTTP: f"127.0.0.1:{ports['http']}", GRPC: f"127.0.0.1:{ports['grpc']}"}
    options = {"play": "--port 0", "serve": " ".join(f"--{name}-port {port}" for name, port in ports.items())}
    for number, block in enumerate(blocks):
        text = block.text
        for written, address in addresses.items():
            text = text.replace(written, address)
        if block.language == "python":
            python.append(text)
        for line in text.splitlines() if block.language == "sh" else ():
            if not long and INSTALLS.match(line):
                continue
            # Else a quarter of an hour; and trials of a second do not measure a p99.
            line = line.replace("bench capacity", "bench capacity --trial 1 --as-it-is --p99-ms 5000")
            lines.append(SERVES.sub(lambda match: f"background {match[0]} {options[match[1]]}", line))
        if number == last:
            lines.append(".venv/bin/python page.py")
    return BACKGROUND + "\n".join(lines) + "\n", "\n".join(python)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name as the reader's own."""
    from rapidocr import __file__ as rapidocr

    folder = tmp_path_factory.mktemp("files")
    picture = receipt()
    for name in ("photo.jpg", "receipt.jpg", "scans/a.jpg", "scans/b.jpg", "a.jpg", "poster.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture.image.save(folder / name)
    for name in ("document.tif", "document.pdf"):
        picture.image.save(folder / name, save_all=True, append_images=[street().image])
    write_labelled(folder / "labelled", demo_pictures())
    network = next((Path(rapidocr).parent / "models").glob("*det*small*.onnx"))
    shutil.copy(network, folder / "ocdnet.onnx")
    (folder / "spec.yaml").write_text(SPEC, "utf-8")
    return folder


def write_labelled(folder: Path, pictures: tuple[Picture, ...]) -> None:
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    for picture in pictures:
        picture.image.save(folder / "img" / f"{picture.name}.jpg")
        rows = zip(picture.quads.reshape(-1, 8).round().astype(int).tolist(), picture.texts, strict=True)
        text = "".join(f"{','.join(map(str, quad))},{text}\n" for quad, text in rows)
        (folder / "gt" / f"gt_{picture.name}.txt").write_text(text, "utf-8")


def run(page: str, folder: Path, addresses: dict[str, str], *, long: bool) -> None:
    blocks = [one for one in BLOCKS if one.page == page and one.reason is None and (long or one.marker != "long")]
    text, python = script(blocks, addresses, long=long)
    (folder / "page.py").write_text(python, "utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS")}
    process = subprocess.Popen(
        [SHELL, "-c", text], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=3000 if long else 200)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, f"{page}\n{output[-6000:]}"


@pytest.fixture
def folder(tmp_path: Path, files: Path) -> Path:
    """The files, and links to what a checkout has."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("docs", "examples"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


@pytest.mark.triton
@pytest.mark.parametrize("page", in_pages(long=False))
def test_the_snippets_of_a_page_run(page: str, folder: Path, default_server: TritonServer) -> None:
    addresses = {GRPC: default_server.grpc_url, HTTP: default_server.http_url}
    assert default_server.options.shared_memory is not None
    shutil.copy(default_server.options.shared_memory, folder / "memory.token")
    run(page, folder, {written: url.partition("//")[2] for written, url in addresses.items()}, long=False)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Path]:
    """A copy of the committed files, without an environment."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(files, folder, dirs_exist_ok=True)
    subprocess.run(["make", "demo"], cwd=folder, check=True, env={**os.environ, "MAKEFLAGS": ""})
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.triton
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", ["README.md", *(page for page in in_pages(long=True) if page != "README.md")])
def test_all_commands_of_a_page_run_in_the_environment_that_it_makes(page: str, checkout: Path) -> None:
    before = {*checkout.iterdir()}
    run(page, checkout, {}, long=True)
    for path in {*checkout.iterdir()} - before:  # a page starts without the results of another
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.triton
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_commands_about_training_run(folder: Path, shared_data: Path) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    # The drawn pictures have nothing that is left to learn.
    images, labels = (sorted((shared_data / "receipts" / kind).iterdir()) for kind in ("img", "gt"))
    for name, files in (("labelled/img", images[:30]), ("labelled/gt", labels[:30]), ("scans", images[10:])):
        shutil.rmtree(folder / name)
        (folder / name).mkdir()
        for file in files:
            shutil.copy(file, folder / name)
    run(TRAINING, folder, {}, long=True)


def test_a_block_that_does_not_run_says_why(record_property: Callable[[str, object], None]) -> None:
    assert {block.marker for block in BLOCKS if block.reason is None} == {"", "long"}
    first = {block: re.split(r"  +#", block.text.splitlines()[0])[0] for block in BLOCKS}
    left = [f"  {block.page}: {block.reason}: {first[block]}" for block in BLOCKS if block.reason]
    assert len(BLOCKS) > 30
    assert 5 < len(left) < 20
    record_property("printed", "\n".join(["snippets of the documentation that no test runs:", *left]))


def test_every_fence_names_its_language() -> None:
    known = {"sh", "python", "json", "yaml", "toml", ""}
    for page in pages():
        fences = re.findall(r"^ *```(.*)$", (REPOSITORY / page).read_text("utf-8"), re.M)
        assert len(fences) % 2 == 0, page
        assert set(fences) <= known, page
        # Indented fences, and other spellings of the languages, would escape the tests above.
        assert sum(fence in ("sh", "python") for fence in fences) == len(blocks_of(page)), page


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((REPOSITORY / "examples" / "first_picture.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "committed without outputs"
    monkeypatch.chdir(REPOSITORY / "examples")
    names: dict[str, Any] = {}
    shown = [last_value("".join(cell["source"]), names) for cell in cells]
    assert shown[0] == (10, 960, 540)
    assert shown[1].size == (960, 540)
    assert [len(shown[2]), shown[3][0][:2], shown[4].height] == [10, (10, 48), 480]
    assert list(shown[5].values()) == sorted(shown[5].values(), reverse=True)


def last_value(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; returns the value of its last expression, which a notebook shows."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
