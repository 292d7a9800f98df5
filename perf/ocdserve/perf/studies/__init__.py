# SPDX-License-Identifier: Apache-2.0
"""One-time studies, not part of the wheel."""
