# SPDX-License-Identifier: Apache-2.0
"""Measuring ranges of tensors on images."""
