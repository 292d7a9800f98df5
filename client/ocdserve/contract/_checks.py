# SPDX-License-Identifier: Apache-2.0
"""Checks of single values that options share."""

import math

from ocdserve.contract._errors import InvalidInputError


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise InvalidInputError unless `value` is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise InvalidInputError(f"{name} must be a whole number of at least {least}; got {value!r}")


def check_seconds(name: str, value: float) -> None:
    """Raise InvalidInputError unless `value` is a finite number above 0."""
    if not is_number(value) or not (value > 0 and math.isfinite(value)):
        raise InvalidInputError(f"{name} must be a finite number of seconds above 0; got {value!r}")


def is_number(value: object) -> bool:
    """Whether this is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
