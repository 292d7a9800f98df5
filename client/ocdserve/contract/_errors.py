# SPDX-License-Identifier: Apache-2.0
"""Errors that both sides of the contract share.

OcdserveError
├── InvalidInputError   the request, image, option or file is at fault; trying again does not help
└── UnavailableError    the server or a component is absent or not ready; trying again may help
"""


class OcdserveError(Exception):
    """Base of every error that ocdserve raises on purpose."""


class InvalidInputError(OcdserveError, ValueError):
    """The input is at fault. The message says what was wrong, the value, the rule and the remedy."""


class UnavailableError(OcdserveError, RuntimeError):
    """A server or a component that the call needs is absent or not ready."""
