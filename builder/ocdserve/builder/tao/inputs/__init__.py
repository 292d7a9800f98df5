# SPDX-License-Identifier: Apache-2.0
"""What the actions read: networks, images, labels, folders of parent jobs."""
