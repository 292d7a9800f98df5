# SPDX-License-Identifier: Apache-2.0
"""Requests and responses as they are on the wire; pure functions."""
