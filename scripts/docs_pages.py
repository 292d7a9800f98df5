# SPDX-License-Identifier: Apache-2.0
"""Hook of MkDocs: pages whose sources are outside of docs/, the command line's reference, and the links between them.

Links are relative to the file in the repository, where they work as well. A link to a file that is no page of the site
becomes plain text.
"""

import io
import os
import posixpath
import re
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "THIRD_PARTY.md": "third-party.md",
    "THREAT_MODEL.md": "threat-model.md",
    "builder/MIGRATION.md": "migration.md",
    "examples/README.md": "examples.md",
    "perf/gpu_check/README.md": "gpu-check.md",
    **{f"perf/results/{file.name}": f"measured/{file.name}" for file in (REPOSITORY / "perf/results").glob("*.md")},
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages from elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(REPOSITORY / source).read_text("utf-8")))
    for file in sorted((REPOSITORY / "examples").iterdir()):
        if file.suffix in (".py", ".ipynb"):
            files.append(File.generated(config, f"examples/{file.name}", content=file.read_text("utf-8")))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links at the pages of the site."""
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        target, text = match["target"], match["text"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        on_site = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(on_site) is None:
            if not (REPOSITORY / path).exists():
                return match[0]  # MkDocs reports it
            return text
        relative = posixpath.relpath(on_site, posixpath.dirname(here) or ".")
        return f"{match['image']}[{text}]({relative}{match['anchor'] or ''})"

    return _LINK.sub(link, markdown)


def command_line() -> str:
    """The reference page of the commands: their own --help."""
    from ocdserve.cli import COMMANDS, main
    from ocdserve.cli.tao import main as ocdnet

    os.environ["COLUMNS"] = "100"
    names = [[]]
    for command in COMMANDS:
        names.append([command.name])
        inner = getattr(import_module(command.module), "COMMANDS", ())
        names += [[command.name, one.name] for one in inner]
    parts = ["# Command line", "", "What `--help` prints."]
    for run, words in [*((main, words) for words in names), (ocdnet, [])]:
        title = " ".join(["ocdserve" if run is main else "ocdnet", *words])
        output = io.StringIO()
        with redirect_stdout(output):
            code = run([*words, "--help"])
        if code:
            raise RuntimeError(f"`{title} --help` ended with {code}")
        parts += ["", f"## {title}", "", "```text", output.getvalue().rstrip(), "```"]
    return "\n".join(parts) + "\n"


class Examples(Extension):
    """Of mkdocstrings: shows the examples in docstrings (`>>> ...`) as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Put fences around them."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^( *)>>> .*(?:\n\1\S.*)*",
                lambda match: f"{match[1]}```python\n{match[0]}\n{match[1]}```",
                obj.docstring.value,
                flags=re.M,
            )
