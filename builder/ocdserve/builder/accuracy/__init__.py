# SPDX-License-Identifier: Apache-2.0
"""The accuracy gate, per-layer sensitivity, and the search for layers to exclude from quantisation."""
