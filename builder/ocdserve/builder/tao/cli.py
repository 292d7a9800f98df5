# SPDX-License-Identifier: Apache-2.0
"""The `ocdnet` command, with the command lines of NVIDIA TAO's images.

    ocdnet ACTION -e spec.yaml [dotted.key=value ...]
        train, retrain, prune, quantize, export, automl    networks, checkpoints and the ONNX of one
        gen_trt_engine                                     engine or quantised ONNX
        evaluate, inference                                of a checkpoint, or of an engine, ONNX or bundle
    ocdnet default_specs  results_dir=DIR            all keys with their defaults
    ocdnet schema ACTION [--tao]                     JSON Schema of the spec, or in the form of NVIDIA's
    ocdnet schema --output DIR                       the latter of all actions, a manifest and spec templates
    ocdnet resolve --parent DIR --action ACTION      keys that the next action takes from a result folder
    ocdnet import-nvocdr spec.json --output DIR      bundle with the settings of nvOCDR

Exit codes: 0 done, 1 failed, 130 interrupted, 143 terminated; the last line of status.json agrees.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ocdserve.backend.files import write_atomically
from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.running import DONE, FAILED, INTERRUPTED, run_action
from ocdserve.builder.tao.schema import json_schema
from ocdserve.builder.tao.tao_schema import tao_schema, write_schemas
from ocdserve.contract import OcdserveError


class _Parser(argparse.ArgumentParser):
    """Exits with 1 on bad usage, as TAO does."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; without this, Python reports the broken pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OcdserveError, OSError) as error:
        print(f"ocdnet {arguments[0]}: {error}", file=sys.stderr)
        return FAILED


def _main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ACTIONS:
        return _act(name, arguments[1:])
    if name in _TOOLS:
        return _TOOLS[name](arguments[1:])
    parser = _Parser(prog="ocdnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*ACTIONS, *_TOOLS], metavar="COMMAND")
    parser.parse_args(arguments)
    return FAILED


def _act(name: str, arguments: list[str]) -> int:
    action = ACTIONS[name]
    parser = _Parser(prog=f"ocdnet {name}", description=f"{action.help[0].upper()}{action.help[1:]}.")
    parser.add_argument("-e", "--experiment_spec_file", metavar="FILE", type=Path, help="the spec, YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="take precedence over the file")
    args = parser.parse_intermixed_args(arguments)
    if args.experiment_spec_file is None and action.needs_file:
        parser.error("name the spec file with -e")
    code = run_action(action, args.experiment_spec_file, args.overrides)
    print(f"Execution status: {'PASS' if code == DONE else 'FAIL'}")
    return code


def _schema(arguments: list[str]) -> int:
    parser = _Parser(prog="ocdnet schema", description="Print the JSON Schema (draft 2020-12) of an action's spec.")
    parser.add_argument("action", nargs="?", help=", ".join(ACTIONS))
    parser.add_argument("--tao", action="store_true", help="print it in the form of the schemas that NVIDIA publishes")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="write those of all TAO's actions, a manifest and spec templates there",
    )
    args = parser.parse_args(arguments)
    if (args.action is None) == (args.output is None):
        parser.error("name an action, or with --output the folder for those of all actions")
    if args.output is not None:
        print(f"wrote {write_schemas(args.output)}, the schemas that it names and their spec templates")
        return DONE
    print(json.dumps((tao_schema if args.tao else json_schema)(args.action), indent=2))
    return DONE


def _resolve(arguments: list[str]) -> int:
    from ocdserve.builder.tao.inputs.resolve import RESOLVABLE, Request, resolve

    parser = _Parser(
        prog="ocdnet resolve", description="Print the keys that an action takes from its parent's results."
    )
    add = parser.add_argument
    add("--action", required=True, choices=RESOLVABLE, help="the action that comes next")
    add("--parent", metavar="DIR", type=Path, help="result folder of the action before")
    add("--output", metavar="DIR", type=Path, help="its own results (default: next to the parent)")
    add("--checkpoint", metavar="WHICH", default="best", help="best, latest, epoch:N, or a file's name")
    add("--pretrained", metavar="FILE", type=Path, help="initial weights of train")
    add("--json", metavar="FILE", help="write JSON there; - for stdout")
    args = parser.parse_args(arguments)
    found = resolve(Request(args.action, args.parent, args.output, args.checkpoint, args.pretrained))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    record = {"action": args.action, "spec": found.values, "notes": list(found.notes)}
    text = "\n".join(found.overrides()) if args.json is None else json.dumps(record, indent=2)
    if args.json in (None, "-"):
        print(text)
    else:
        write_atomically(Path(args.json), f"{text}\n".encode())
    return DONE


def _import_nvocdr(arguments: list[str]) -> int:
    from ocdserve.builder import BuildConfig, TerminalProgress, build
    from ocdserve.builder.tao.inputs.nvocdr import import_nvocdr

    parser = _Parser(prog="ocdnet import-nvocdr", description="Make a bundle with the settings of nvOCDR's spec.json.")
    add = parser.add_argument
    add("spec", metavar="spec.json", type=Path)
    add("--onnx", metavar="FILE", type=Path, help="the network; without it only the settings are written")
    add("--output", metavar="PATH", type=Path, required=True, help="bundle, or with no --onnx a JSON file")
    args = parser.parse_args(arguments)
    detector, notes = import_nvocdr(args.spec)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if args.onnx is None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, detector.to_json().encode())
        print(f"wrote the settings {args.output}; with --onnx they and the network become a bundle")
        return DONE
    config = BuildConfig(args.onnx, args.output, detector=detector, gate=False, trial=False)
    build(config, TerminalProgress(sys.stderr))
    print(f"wrote the bundle {args.output}; serve it: ocdserve serve --bundle {args.output}")
    return DONE


_TOOLS: dict[str, Callable[[list[str]], int]] = {
    "schema": _schema,
    "resolve": _resolve,
    "import-nvocdr": _import_nvocdr,
}
