# SPDX-License-Identifier: Apache-2.0
"""Processes of the server: command line, folders, watching, health."""
