# SPDX-License-Identifier: Apache-2.0
"""The page of `ocdserve play`: an HTML file with script and style, and a small server for them."""

from ocdserve.cli.playground.server import PlayOptions, PlayServer

__all__ = ["PlayOptions", "PlayServer"]
