# SPDX-License-Identifier: Apache-2.0
"""The page behind `ocdserve play`: one HTML file with its script and style, and the small server that serves them."""

from ocdserve.cli.playground.server import PlayOptions, PlayServer

__all__ = ["PlayOptions", "PlayServer"]
