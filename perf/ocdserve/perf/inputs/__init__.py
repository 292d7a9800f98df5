# SPDX-License-Identifier: Apache-2.0
"""Images, maps and data sets for benchmarks."""
