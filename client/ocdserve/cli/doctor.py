# SPDX-License-Identifier: Apache-2.0
"""Report what this machine can run, and what to install for the rest.

Exit code 0 when text can be detected here, in process at least; 1 otherwise.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Examine and report."""
    from ocdserve.backend.doctor import examine

    findings = examine()
    if args.json:
        print(json.dumps({item.name: {"ok": item.ok, "found": item.found, "remedy": item.remedy} for item in findings}))
    else:
        width = max(len(item.name) for item in findings)
        for item in findings:
            print(f"{'ok ' if item.ok else '-- '} {item.name:{width}}  {item.found}")
            if not item.ok and item.remedy:
                print(f"{'':{width + 6}}{item.remedy}")
    return 0 if all(item.ok for item in findings if item.essential) else 1
