# SPDX-License-Identifier: Apache-2.0
"""Fonts that are found on this machine, and the scripts that each has all characters of."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from ocdserve.builder.train.data.drawing.words import SCRIPTS, alphabet
from ocdserve.contract import InvalidInputError

_SUFFIXES = (".ttf", ".otf", ".ttc")
# Folders that fontconfig searches by default.
_SYSTEM = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
# Packages with fonts, and where in them; the last two are those of the extra `perf`.
_PACKAGES = (
    ("matplotlib", "mpl-data/fonts/ttf"),
    ("matplotlib_fontja", "fonts"),
    ("fontpkg_noto_sans_devanagari", "files"),
)
# In the names of fonts whose letters are symbols or boxes: mathematical ones, those of pictures, the one that stands
# for missing characters.
_NO_TEXT = ("cmex", "cmmi", "cmsy", "stixsiz", "stixnonuni", "lastresort", "symbol", "emoji", "dingbat", "ornament")
# Of the fonts of a machine so many are read at most, evenly by name; some machines have thousands.
_MOST = 400


@dataclass(frozen=True)
class Face:
    """A font file.

    Attributes:
        path: Of the file.
        scripts: Keys of the words whose every character it has.
    """

    path: Path
    scripts: tuple[str, ...]

    @property
    def family(self) -> str:
        """What fonts of one design have in common: the file name up to its first hyphen."""
        return self.path.stem.partition("-")[0]

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at a size in pixels per em."""
        return _opened(self.path, size)


def faces(fonts: Iterable[Path] | None = None) -> tuple[Face, ...]:
    """The fonts to draw with, by file name; a file name occurs once.

    Args:
        fonts: Font files; None takes those of matplotlib and of installed packages, and the system's, but for files
            that FreeType cannot read.

    Raises:
        InvalidInputError: A file is no font, or none has all characters of a script.
    """
    paths = _installed() if fonts is None else tuple(Path(font) for font in fonts)
    named = {path.name: path for path in reversed(paths)}
    names = sorted(named) if fonts is not None else sorted(named)[:: -(-len(named) // _MOST) or 1]
    found = tuple(face for name in names if (face := _face(named[name], fonts is None)).scripts)
    if not found:
        raise InvalidInputError(
            f"none of the {len(named)} fonts has all letters of one script ({', '.join(SCRIPTS)}); name text fonts "
            f"({', '.join(_SUFFIXES)})"
        )
    return found


@cache
def _installed() -> tuple[Path, ...]:
    """Font files of packages, then of the system, without those of symbols."""
    folders = []
    for package, folder in _PACKAGES:
        # Not imported: a package of fonts may change the settings of matplotlib when it is.
        if (spec := find_spec(package)) and spec.submodule_search_locations:
            folders.append(Path(spec.submodule_search_locations[0], folder))
    data = os.environ.get("XDG_DATA_HOME")
    folders += [Path(folder).expanduser() for folder in _SYSTEM] + ([Path(data, "fonts")] if data else [])
    found = (path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*")))
    return tuple(
        path
        for path in found
        if path.suffix.lower() in _SUFFIXES and not any(part in path.name.lower() for part in _NO_TEXT)
    )


@cache
def _face(path: Path, is_optional: bool) -> Face:
    # Late: it takes a third of a second.
    from matplotlib.ft2font import FT2Font

    try:
        characters = {chr(code) for code in FT2Font(str(path)).get_charmap()}
    except (OSError, RuntimeError) as error:
        if is_optional:
            return Face(path, ())
        raise InvalidInputError(f"{path} is no font that FreeType reads: {error}") from error
    return Face(path, tuple(script for script in SCRIPTS if alphabet(script) <= characters))


@lru_cache(maxsize=512)
def _opened(path: Path, size: int) -> ImageFont.FreeTypeFont:
    # The other layout engine is found on some machines only, and places characters differently.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
