# SPDX-License-Identifier: Apache-2.0
"""What drawn pages are made of: fonts, words, grounds, layouts, damage."""
