# SPDX-License-Identifier: Apache-2.0
"""Recognisers: networks that read lines of text."""
