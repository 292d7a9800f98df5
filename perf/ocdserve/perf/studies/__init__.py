# SPDX-License-Identifier: Apache-2.0
"""One-time studies, run from the source tree; not part of the wheel."""
