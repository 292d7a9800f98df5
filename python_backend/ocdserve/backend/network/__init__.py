# SPDX-License-Identifier: Apache-2.0
"""Runtimes that execute the network."""
