# SPDX-License-Identifier: Apache-2.0
"""Images, maps and data sets that benchmarks measure on."""
