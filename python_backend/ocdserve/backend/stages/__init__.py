# SPDX-License-Identifier: Apache-2.0
"""The stages, pure functions over arrays: decode, preprocess, postprocess."""
