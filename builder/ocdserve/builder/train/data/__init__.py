# SPDX-License-Identifier: Apache-2.0
"""Training data: labels, drawn pages, targets, augmentation, data sets."""
