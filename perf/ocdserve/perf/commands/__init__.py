# SPDX-License-Identifier: Apache-2.0
"""Commands of `ocdserve bench`; the registry is `ocdserve.cli.bench`."""
