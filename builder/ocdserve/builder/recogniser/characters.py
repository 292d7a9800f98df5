# SPDX-License-Identifier: Apache-2.0
"""The characters of a recogniser: one for every class but the blank."""

from pathlib import Path

import onnx
import yaml

from ocdserve.builder.recogniser.ends import CHARACTERS_KEY, Scores
from ocdserve.contract import InvalidInputError

_SPACE = " "


def listed_characters(model: onnx.ModelProto, file: Path | None) -> tuple[tuple[str, ...], str]:
    """The characters as they are listed, and where: in a file, else in the network's metadata.

    A file has one character a line, or is the `inference.yml` of PaddleOCR.

    Raises:
        InvalidInputError: There are none, or the file is malformed.
    """
    if file is not None:
        return _from_file(file), f"{file} (--characters)"
    for item in model.metadata_props:
        if item.key == CHARACTERS_KEY:
            return tuple(item.value.removesuffix("\n").split("\n")), "the network's metadata"
    raise InvalidInputError(
        "its file does not tell the characters of its classes: name a file with one a line, in the order of the "
        "classes, by --characters. It is called dictionary by PaddleOCR (or inference.yml), character_list by TAO."
    )


def fitted_characters(listed: tuple[str, ...], where: str, classes: int, scores: Scores) -> tuple[str, ...]:
    """The character of every class from 1 on; class 0 is the blank.

    PaddleOCR appends a space to its lists. TAO's attention decoder has two classes before the characters.

    Args:
        listed: From `listed_characters`, like `where`.
        where: Where they are listed.
        classes: Number of classes of the network.
        scores: Its output.

    Raises:
        InvalidInputError: Their number is not that of the classes; the message says what it looks like.
    """
    missing = classes - 1 - len(listed)
    if missing == 0:
        return listed
    if missing == 1 and scores.reduced:
        raise InvalidInputError(
            f"the network has {classes} classes for {len(listed)} characters in {where}: two more, as of an attention "
            "decoder ([GO] and [s]), which reads a line letter by letter. Only CTC decoders, with one class more, are "
            "served: train and export OCRNet with model.prediction=CTC."
        )
    if missing == 1:
        # Even to a list with a space, such as its English one.
        return (*listed, _SPACE)
    raise InvalidInputError(
        f"the network has {classes} classes, a blank and {classes - 1} characters (or {classes - 2} and a space), but "
        f"{where} lists {len(listed)}: they belong to another network. Name its own by --characters."
    )


def _from_file(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"--characters: {file} is not UTF-8 text: {error}. Convert it.") from error
    except OSError as error:
        raise InvalidInputError(f"--characters: cannot read {file}: {error.strerror}") from error
    if file.suffix in (".yml", ".yaml"):
        return _from_yaml(file, text)
    # Not `splitlines`: a character may be one that it takes for a line's end.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if "" in lines:
        raise InvalidInputError(
            f"--characters: line {lines.index('') + 1} of {file} is empty; each line must hold one character, a space "
            "too"
        )
    return tuple(lines)


def _from_yaml(file: Path, text: str) -> tuple[str, ...]:
    try:
        found = yaml.safe_load(text)["PostProcess"]["character_dict"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InvalidInputError(f"--characters: {file} has no list PostProcess.character_dict ({error!r})") from error
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise InvalidInputError(f"--characters: PostProcess.character_dict of {file} must be a list of characters")
    return tuple(found)
