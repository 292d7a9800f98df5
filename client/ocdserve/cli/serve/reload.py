# SPDX-License-Identifier: Apache-2.0
"""Replace the detector of a running server without a failed request.

The new detector is loaded next to the old one and tried; when that fails, the old one goes on and the exit code is 1.
Without --bundle, the server reads its bundle, or the repository that it serves, again; likewise without --recogniser.
"""

import argparse

from ocdserve.cli import whole_number
from ocdserve.cli.tuning import add_bundle_argument, add_recogniser_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_bundle_argument(parser, "serve from now on")
    add_recogniser_argument(parser, "recogniser to serve from now on, where one is served")
    parser.add_argument(
        "--pid", type=whole_number(1), metavar="N", help="process id of `ocdserve serve`, if several run here"
    )


def run(args: argparse.Namespace) -> int:
    """Reload, and print what is served."""
    from ocdserve.backend.serve.control import ask_to_reload, find_server

    print(ask_to_reload(find_server(args.pid), args.bundle, args.recogniser))
    return 0
