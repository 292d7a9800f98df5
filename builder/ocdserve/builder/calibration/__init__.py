# SPDX-License-Identifier: Apache-2.0
"""Ranges of tensors, measured on images."""
