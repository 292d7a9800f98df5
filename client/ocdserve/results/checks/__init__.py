# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an encoded image: too many parts before it is opened, missing rows after it is decoded."""
