# SPDX-License-Identifier: Apache-2.0
"""The action `default_specs`: all keys with their defaults, as the experiment file that every action writes."""

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.spec.write import EXPERIMENT


def run(spec: Spec, context: Context) -> ActionResult:
    """The command has written the file; this names it."""
    path = context.results_dir / EXPERIMENT
    return ActionResult(f"wrote all keys with their defaults to {path}")
