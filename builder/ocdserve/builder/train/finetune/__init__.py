# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a detector on a user's pictures, with a guard against forgetting all others."""
