# SPDX-License-Identifier: Apache-2.0
"""Measurements: raw samples, estimates, environment, files."""
