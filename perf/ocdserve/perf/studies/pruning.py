# SPDX-License-Identifier: Apache-2.0
"""A trained network without three tenths of its channels, trained again, judged on unseen images beside its parent.

    python -m ocdserve.perf.studies.from_scratch --data DIR --output PARENT
    python -m ocdserve.perf.studies.pruning --parent PARENT --output FOLDER

Prunes and retrains with `ocdnet prune` and `ocdnet retrain`, for half of the epochs that the parent had. Images and the
choice of thresholds are those of `from_scratch`. Held: the network loses at most 5 points of hmean.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.running import run_action
from ocdserve.perf.studies.from_scratch import (
    SPEC,
    common_overrides,
    counts_by_thresholds,
    figures_at_best,
    last_checkpoint,
)

_MOST_LOSS = 0.05
_PRUNE = ("prune.ch_sparsity=0.3", "prune.round_to=4")
_TRAIN = (
    "train.num_epochs=42",
    "train.validation_interval=42",
    "train.checkpoint_interval=42",
    "train.optimizer.args.lr=0.001",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prune, retrain and judge, print the figures as JSON, and return 0 if the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=Path, required=True, help="output of from_scratch")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the spec")
    args = parser.parse_args(argv)
    lists = args.parent / "train.txt", args.parent / "judge.txt"
    common = [*common_overrides(args.output, *lists), *args.overrides]
    parent = last_checkpoint(args.parent / "train")
    pruned = args.output / "prune" / "pruned_0.3.pth"
    for action, overrides in (
        ("prune", [f"prune.checkpoint={parent}", *_PRUNE]),
        ("retrain", [f"model.pruned_graph_path={pruned}", *_TRAIN]),
    ):
        if code := run_action(ACTIONS[action], SPEC, [*common, *overrides]):
            return code
    networks = {"parent": parent, "pruned": pruned, "retrained": last_checkpoint(args.output / "train")}
    figures = {
        name: figures_at_best(*(counts_by_thresholds(checkpoint, listed, args.overrides) for listed in lists))
        for name, checkpoint in networks.items()
    }
    loss = figures["parent"]["unseen images"]["hmean"] - figures["retrained"]["unseen images"]["hmean"]
    sys.stdout.write(f"{json.dumps({'loss': loss, 'holds': loss <= _MOST_LOSS, **figures}, indent=2)}\n")
    return 0 if loss <= _MOST_LOSS else 1


if __name__ == "__main__":
    sys.exit(main())
