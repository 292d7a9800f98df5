# SPDX-License-Identifier: Apache-2.0
"""Servers under load: scenarios, drivers, memory."""
