# SPDX-License-Identifier: Apache-2.0
"""Training data: targets, augmentation, data sets."""
