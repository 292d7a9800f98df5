# SPDX-License-Identifier: Apache-2.0
"""Folders of a limited size that together carry the files of the check, each useful without those after it.

`python -m ocdserve.perf.gpu_check.folders pack|join|plan`; imports nothing but Python's own library. `join` copies, so
that a folder may be gone when the next one comes.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ocdserve.perf.gpu_check.plan import BASE, FOLDER_MIB, HOST, INSTALLATION_S, PARTS, TOTAL_S, TRITON

MANIFEST = "MANIFEST.json"
MIB = 1 << 20
# Room for the manifest, and for what a file system adds.
_RESERVE = MIB // 2
_PIECE = ".piece-"


class FolderError(Exception):
    """The folders are not what was packed; the message says what is wrong."""


@dataclass(frozen=True)
class Piece:
    """A part of a file, in one folder.

    Attributes:
        folder: Number of the folder, from 1.
        begin: Its first byte in the file.
        size: Bytes.
    """

    folder: int
    begin: int
    size: int


def arrange(sizes: Mapping[str, int], limit: int) -> dict[str, tuple[Piece, ...]]:
    """Distribute files over folders: each into the first with room; one larger than a folder is cut.

    Args:
        sizes: Bytes by name; the first part of a name is its group. The needs of the earlier parts must come first.
        limit: Bytes of a folder.

    Raises:
        FolderError: The limit is not positive.
    """
    if limit <= 0:
        raise FolderError(f"a folder's limit must be positive; got {limit} bytes")
    left: list[int] = []
    arranged: dict[str, tuple[Piece, ...]] = {}
    for name, size in sizes.items():
        if size > limit:
            pieces, begin = [], 0
            while begin < size:
                if not left or not left[-1]:
                    left.append(limit)
                length = min(size - begin, left[-1])
                left[-1] -= length
                pieces.append(Piece(len(left), begin, length))
                begin += length
            arranged[name] = tuple(pieces)
            continue
        index = next((index for index, room in enumerate(left) if room >= size), len(left))
        if index == len(left):
            left.append(limit)
        left[index] -= size
        arranged[name] = (Piece(index + 1, 0, size),)
    return arranged


def pack(collected: Path, target: Path, mib: int = FOLDER_MIB) -> int:
    """Write the folders `target/1`, `target/2`, ...; those of an earlier call are removed.

    Args:
        collected: A folder per group.
        target: Where the folders are made.
        mib: Largest size of each in MiB.

    Returns:
        Their number.

    Raises:
        FolderError: There is no group `base`, or the limit is too small.
    """
    groups = sorted((folder.name for folder in collected.iterdir() if folder.is_dir()), key=_rank)
    if BASE not in groups:
        raise FolderError(f"{collected} holds no folder {BASE!r}; perf/gpu_check/pack.sh makes it")
    files = [file for group in groups for file in sorted((collected / group).rglob("*")) if file.is_file()]
    names = {str(file.relative_to(collected)): file for file in files}
    arranged = arrange({name: file.stat().st_size for name, file in names.items()}, mib * MIB - _RESERVE)
    count = max(piece.folder for pieces in arranged.values() for piece in pieces)
    manifest = {
        name: {"sha256": _sha256(names[name]), "pieces": [asdict(piece) for piece in pieces]}
        for name, pieces in arranged.items()
    }
    for old in target.iterdir():
        if old.name.isdigit():
            shutil.rmtree(old)
    for number in range(1, count + 1):
        (target / str(number)).mkdir(parents=True)
        (target / str(number) / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    for name, pieces in arranged.items():
        with open(names[name], "rb") as source:
            for piece in pieces:
                file = _file_of(target / str(piece.folder), name, piece, len(pieces))
                file.parent.mkdir(parents=True, exist_ok=True)
                source.seek(piece.begin)
                file.write_bytes(source.read(piece.size))
    return count


def join(work: Path, folders: Sequence[Path]) -> dict[str, list[int]]:
    """Add the files of folders to `work/carried`.

    Args:
        work: Keeps what earlier calls brought.
        folders: Some of the folders; all of one packing.

    Returns:
        For each group, the folders that it still lacks; none: it is complete.

    Raises:
        FolderError: A folder is of another packing, or a file is damaged.
    """
    known = work / MANIFEST
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            raise FolderError(f"{folder} holds no {MANIFEST}; perf/gpu_check/pack.sh makes such a folder")
        text = (folder / MANIFEST).read_text("utf-8")
        if known.is_file() and known.read_text("utf-8") != text:
            raise FolderError(f"{folder} is of another packing than what {work} holds: remove {work}, or name --work")
        work.mkdir(parents=True, exist_ok=True)
        known.write_text(text, "utf-8")
    if not known.is_file():
        raise FolderError(f"{work} holds nothing yet: name a folder that perf/gpu_check/pack.sh has made")
    lacking: dict[str, set[int]] = {}
    for name, described in json.loads(known.read_text("utf-8")).items():
        pieces = [Piece(**piece) for piece in described["pieces"]]
        lacking.setdefault(Path(name).parts[0], set()).update(
            _join_file(work, folders, name, pieces, described["sha256"])
        )
    return {group: sorted(missing) for group, missing in lacking.items()}


def _join_file(work: Path, folders: Sequence[Path], name: str, pieces: Sequence[Piece], sha256: str) -> list[int]:
    """Bring one file into `work/carried`; returns the folders that it still lacks."""
    target = work / "carried" / name
    if target.is_file():
        return []
    kept = work / "pieces"
    missing = []
    for piece in pieces:
        file = _file_of(kept, name, piece, len(pieces))
        if not file.is_file():
            # One that was cut off while it was copied has the wrong size.
            found = [_file_of(folder, name, piece, len(pieces)) for folder in folders]
            sources = [source for source in found if source.is_file() and source.stat().st_size == piece.size]
            if not sources:
                missing.append(piece.folder)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources[0], file)
    if missing:
        return missing
    files = [_file_of(kept, name, piece, len(pieces)) for piece in pieces]
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_name(target.name + ".new")
    with open(whole, "wb") as output:
        for file in files:
            output.write(file.read_bytes())
    for file in files:
        file.unlink()
    if _sha256(whole) != sha256:
        whole.unlink()
        raise FolderError(f"{name} is not what was packed; carry folder {pieces[0].folder} again")
    whole.replace(target)
    return []


def plan_text(folders: Sequence[Path]) -> str:
    """The parts with time limits and needs, and the sizes of folders and groups; without folders the times only."""
    lines = [f"{'part':12}{'at most':>8}  needs", f"{'':12}{INSTALLATION_S:6.0f} s  (installation)"]
    for part in PARTS:
        named = "" if part.by_default else "; only if it is named"
        lines.append(f"{part.name:12}{part.max_s:6.0f} s  {', '.join(part.groups)}: {part.content}{named}")
    total = INSTALLATION_S + sum(part.max_s for part in PARTS if part.by_default)
    lines.append(f"{'together':12}{total:6.0f} s  of {TOTAL_S:.0f}")
    for folder in folders:
        sizes: dict[str, int] = {}
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                group = file.relative_to(folder).parts[0]
                sizes[group] = sizes.get(group, 0) + file.stat().st_size
        shown = ", ".join(f"{group} {size / MIB:.1f}" for group, size in sizes.items() if group != MANIFEST)
        lines.append(f"folder {folder.name:5}{sum(sizes.values()) / MIB:6.1f} MiB of {FOLDER_MIB}: {shown}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with a message. `join` prints a line per group: its name, and the folders that it lacks."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.gpu_check.folders", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("collected", type=Path)
    packing.add_argument("target", type=Path)
    packing.add_argument("--mib", type=int, default=FOLDER_MIB)
    joining = commands.add_parser("join")
    joining.add_argument("work", type=Path)
    joining.add_argument("folders", type=Path, nargs="*")
    planning = commands.add_parser("plan")
    planning.add_argument("folders", type=Path, nargs="*")
    options = parser.parse_args(arguments)
    try:
        if options.command == "pack":
            count = pack(options.collected, options.target, options.mib)
            folders = [options.target / str(number) for number in range(1, count + 1)]
            sys.stdout.write(plan_text(folders))
        elif options.command == "join":
            for group, missing in join(options.work, options.folders).items():
                sys.stdout.write(" ".join([group, *map(str, missing)]) + "\n")
        else:
            sys.stdout.write(plan_text(options.folders))
    except FolderError as error:
        sys.stderr.write(f"gpu_check: {error}\n")
        return 2
    return 0


def _rank(group: str) -> tuple[int, str]:
    """What more parts need comes first; where `host` is carried, they all need it."""
    return {BASE: 0, HOST: 1, TRITON: 2}.get(group, 3), group


def _file_of(folder: Path, name: str, piece: Piece, count: int) -> Path:
    return folder / (name if count == 1 else f"{name}{_PIECE}{piece.begin}")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
