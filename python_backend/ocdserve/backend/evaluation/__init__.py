# SPDX-License-Identifier: Apache-2.0
"""Accuracy by the ICDAR 2015 protocol: data sets, matching, figures."""
