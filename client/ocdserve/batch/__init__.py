# SPDX-License-Identifier: Apache-2.0
"""Detection in any number of images, by any engine: `DetectBatch` for the engines of others, jobs for our own.

`ocdserve batch` is the command; a job's shards and their files are described in `ocdserve.batch.job`.
"""

from ocdserve.batch.detect import DetectBatch

__all__ = ["DetectBatch"]
