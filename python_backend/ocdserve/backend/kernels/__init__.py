# SPDX-License-Identifier: Apache-2.0
"""Compiled post-processing and preprocessing: for the CPU, for the GPU, and the arithmetic that they share."""
