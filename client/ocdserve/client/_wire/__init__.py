# SPDX-License-Identifier: Apache-2.0
"""Requests and answers as they are on the wire; pure functions."""
