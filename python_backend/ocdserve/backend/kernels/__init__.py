# SPDX-License-Identifier: Apache-2.0
"""Compiled stages: for the CPU, for the GPU, and the arithmetic that they share."""
