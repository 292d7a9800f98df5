# SPDX-License-Identifier: Apache-2.0
"""Rewriting of the ONNX graph before it is compiled."""
