# SPDX-License-Identifier: Apache-2.0
"""Speed and load measurements, and their reports."""
