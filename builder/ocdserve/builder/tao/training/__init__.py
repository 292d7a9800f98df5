# SPDX-License-Identifier: Apache-2.0
"""Actions of NVIDIA TAO's training image; needs the extra `train`."""

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.spec import Spec
from ocdserve.contract import UnavailableError


def run(spec: Spec, context: Context) -> ActionResult:
    """Refuse: the action is not implemented yet."""
    raise UnavailableError("this action is not in this version yet; run it in NVIDIA's TAO PyTorch image")


run_evaluate = run_inference = run
