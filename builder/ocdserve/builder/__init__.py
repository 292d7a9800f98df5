# SPDX-License-Identifier: Apache-2.0
"""The builder: an exported network to a bundle that can be served."""

from ocdserve.builder.build import BuildConfig, build

__all__ = ["BuildConfig", "build"]
