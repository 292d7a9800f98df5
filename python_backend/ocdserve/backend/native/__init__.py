# SPDX-License-Identifier: Apache-2.0
"""Kept for `python -m ocdserve.backend.native`; use `ocdserve.backend.kernels.cpu`."""
