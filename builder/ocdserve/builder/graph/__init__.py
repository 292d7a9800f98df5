# SPDX-License-Identifier: Apache-2.0
"""Rewriting and typing of the ONNX graph."""
