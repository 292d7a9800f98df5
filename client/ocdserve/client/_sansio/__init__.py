# SPDX-License-Identifier: Apache-2.0
"""What a call does, without doing any I/O."""
