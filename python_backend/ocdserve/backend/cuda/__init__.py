# SPDX-License-Identifier: Apache-2.0
"""Kept for programs that import the GPU detector by its earlier path; use `ocdserve.backend.gpu`."""
