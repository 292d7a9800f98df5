# SPDX-License-Identifier: Apache-2.0
"""Links, commands and options that the documentation names exist; `integration/test_snippets.py` runs its snippets."""

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# A changelog names what was; measurements name the commands of their day.
HISTORY = ("CHANGELOG.md", "perf/results/", "docs/decisions/")


def pages() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [name for name in sorted(listed.stdout.split()) if (REPOSITORY / name).is_file()]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs form them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages())
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```|`[^`]*`", "", (REPOSITORY / page).read_text("utf-8"), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or path == "reference/cli.md":  # made when the site is built
            continue
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_threat_model_names_tests_and_campaigns_that_exist() -> None:
    text = (REPOSITORY / "THREAT_MODEL.md").read_text("utf-8")
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert len(files) > 12
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
    campaigns = re.findall(r"`make campaign-(\w+)`", text)
    assert campaigns and all((REPOSITORY / f"tests/campaigns/{name}.py").is_file() for name in campaigns)


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= 200


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_the_length_in_the_curl_snippet_is_four_bytes_in_every_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    text = (REPOSITORY / "docs" / "protocol.md").read_text("utf-8")
    [encode] = re.findall(r"^length=.*$", text, re.M)
    [write] = re.findall(r'printf %b "\$length"', text)
    # Bytes that printf treats specially: zero, line feed, percent sign, backslash.
    for size, expected in ((0x0A00, b"\0\n\0\0"), (0x5C25, b"%\\\0\0"), (0x01FF7F25, b"%\x7f\xff\x01")):
        script = f"size={size}\n{encode}\n{write}"
        assert subprocess.run([shell, "-c", script], capture_output=True, check=True).stdout == expected


def parsers() -> dict[str, set[str]]:
    """The options of each command: "detect", "bench load", ..."""
    from ocdserve.cli import COMMANDS, bench

    named = [(one.name, one.module) for one in COMMANDS]
    named += [(f"bench {one.name}", one.module) for one in bench.COMMANDS]
    found = {}
    for name, module in named:
        parser = argparse.ArgumentParser()
        import_module(module).add_arguments(parser)
        found[name] = {option for action in parser._actions for option in action.option_strings}
    return found


def commands_in(text: str) -> Iterator[str]:
    """Command lines of ocdserve in code spans and in `sh` blocks."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for code in (*spans, *(re.sub(r"\s#.*", "", line) for line in lines)):
        match = re.match(r"(?:\S*/)?ocdserve ((?:bench )?[a-z].*)", " ".join(code.split()))
        if match and not match[1].startswith("bench SECTION"):
            yield match[1]


def test_commands_and_options_in_the_documentation_exist() -> None:
    known = parsers()
    wrong, seen = [], 0
    for page in pages():
        if page.startswith(HISTORY):
            continue
        for command in commands_in((REPOSITORY / page).read_text("utf-8")):
            seen += 1
            words = command.split()
            name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            unknown = options - known.get(name, set()) - {"--help", "--version"}
            if name not in known or (unknown and name != "tao"):
                wrong.append(f"{page}: ocdserve {command}")
    assert seen > 40
    assert wrong == []
