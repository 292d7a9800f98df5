# SPDX-License-Identifier: Apache-2.0
"""Triton model repositories made from a bundle."""
