# SPDX-License-Identifier: Apache-2.0
"""Networks of the check: carried ones, and what takes the place of one."""
