# SPDX-License-Identifier: Apache-2.0
"""Damaged input of every kind: each is read, or refused by an error of ours, within its time and memory.

Images, detector.json, manifests, calibration caches, tuning files, TAO specs, ONNX and request parameters are read in a
process; HTTP requests, protobufs and images are sent to a server. `--case KIND:NUMBER` repeats one case.
"""

import argparse
import faulthandler
import logging
import multiprocessing
import os
import random
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.campaigns.clients import HEADERS, Load, Plan, Target, grpc_request, http_request
from tests.campaigns.fuzz_cases import KINDS, case, changed_bytes, run_case
from tests.campaigns.report import Report
from tests.campaigns.serving import Sampler, pictures, right_answers, serving, small_bundle

_CASES = {
    "images": 20_000,
    "detector": 30_000,
    "manifest": 20_000,
    "cache": 40_000,
    "tuning": 24_000,
    "spec": 6_000,
    "onnx": 20_000,
    "parameters": 40_000,
}
_SERVED = 10_000
# CPU time of a case, and what the process that runs them may hold in all.
_BUDGET_S = 10.0
_BUDGET_MIB = 2000.0
# A case that takes so long hangs.
_HANG_S = 60.0
_POLL_S = 0.2
# In Triton's log: what a model raised, and did not mean to.
_RAISED = re.compile(r"Traceback|ocdnet\w*: \w+(Error|Exception): ")
_MODELS = ("ocdnet", "ocdnet_fused", "ocdnet_raw", "ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess")


@dataclass(frozen=True)
class Fault:
    """A case that went wrong, and how."""

    case: str
    what: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case (default: 0)")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="run this case only, in this process")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    if args.case:
        _repeat(args.case, report)
        return
    share = 100 if args.short else 1
    rows, faults = [], []
    for kind, count in _CASES.items():
        outcomes, found, slowest_s, peak_mib, seconds = run_cases(kind, args.first, count // share, report)
        faults += found
        rows.append(
            (kind, count // share, outcomes["read"], outcomes["refused"], len(found), slowest_s, peak_mib, seconds)
        )
    headers = ("kind", "cases", "read", "refused", "faults", "slowest s", "peak MiB", "seconds")
    report.table(f"In a process, from number {args.first}", headers, rows)
    report.equal("cases that ended in neither", sum(row[1] - row[2] - row[3] - row[4] for row in rows), 0)
    report.most("CPU time of a case", max(row[5] for row in rows), _BUDGET_S, " s")
    report.most("memory of the process", max(row[6] for row in rows), _BUDGET_MIB, " MiB")
    if faults:
        report.table("Faults", ("case", "what"), [(fault.case, fault.what) for fault in faults[:100]], text_columns=2)
    report.equal("crashes, hangs and raw exceptions", len(faults), 0)
    _serve(report, args.first, _SERVED // share)


def _repeat(named: str, report: Report) -> None:
    kind, _, number = named.partition(":")
    data = case(kind, int(number))
    report.say(f"{len(data)} bytes: {data[:500]!r}")
    faulthandler.dump_traceback_later(_HANG_S, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_case(kind, int(number), Path(folder))
    report.rule("the case is read or refused", outcome, True)


def run_cases(
    kind: str, first: int, count: int, report: Report
) -> tuple[Counter[str], list[Fault], float, float, float]:
    """Run cases of a kind in a process that is watched, and replaced when it crashes or hangs.

    Returns:
        Number of cases by outcome, the faults, CPU seconds of the slowest, peak memory of the process in MiB, and
        seconds.
    """
    context = multiprocessing.get_context("spawn")
    outcomes, faults, slowest, peak = Counter[str](), [], 0.0, 0.0
    started, said, number, last = time.monotonic(), time.monotonic(), first, first + count
    while number < last:
        pipe, theirs = context.Pipe()
        process = context.Process(target=_work, args=(kind, number, last, theirs), daemon=True)
        process.start()
        theirs.close()
        ended = False
        while not ended:
            try:
                hung = not pipe.poll(_HANG_S)
                result = None if hung else pipe.recv()
            except EOFError:
                hung, result = False, None
            if result is None:
                process.kill()
                process.join()
                what = f"hangs for {_HANG_S:g} s" if hung else f"ends the process with {process.exitcode}"
                faults.append(Fault(f"{kind}:{number}", what))
                report.say(f"FAULT {faults[-1]}")
                number += 1
                break
            number, outcome, seconds, peak_now = result
            slowest, peak = max(slowest, seconds), max(peak, peak_now)
            if outcome in ("read", "refused"):
                outcomes[outcome] += 1
            else:
                faults.append(Fault(f"{kind}:{number}", outcome))
                report.say(f"FAULT {faults[-1]}")
            number += 1
            ended = number >= last
            if time.monotonic() - said > 15:
                said = time.monotonic()
                report.say(f"{kind}: {number - first} of {count}, {len(faults)} faults")
        process.join()
    return outcomes, faults, slowest, peak, time.monotonic() - started


def _work(kind: str, first: int, last: int, pipe: Any) -> None:
    # libtiff writes what it finds there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable()
    warnings.simplefilter("ignore")
    KINDS[kind].seeds()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            before = time.process_time()
            try:
                outcome = run_case(kind, number, Path(folder))
            except BaseException as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                outcome = f"{type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send((number, outcome, time.process_time() - before, peak_mib))


def _serve(report: Report, first: int, count: int) -> None:
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "small")
        log = Path(folder) / "triton.log"
        with serving(bundle.model_path.parent, "--log-file", str(log)) as server:
            clients = (("http", "ocdnet"), ("grpc", "ocdnet_fused"))
            plan = Plan(server.target, images, right_answers(server.target, images, bundle, clients), clients)
            with Sampler(server) as sampler, Load(plan) as load:
                outcomes, slowest = Counter[str](), 0.0
                with ThreadPoolExecutor(4) as senders:
                    sent = senders.map(lambda number: send(server.target, number), range(first, first + count))
                    for done, (outcome, seconds) in enumerate(sent, 1):
                        outcomes[outcome] += 1
                        slowest = max(slowest, seconds)
                        if done % 1000 == 0:
                            report.say(f"served: {done} of {count}, {dict(outcomes.most_common(6))}")
                tally = load.stop()
            restarts, peak = server.restarts(), sampler.peak_pss_mib()
        raw = [line for line in log.read_text(errors="replace").splitlines() if _RAISED.search(line)]
    report.table("Good requests meanwhile", HEADERS, [tally.row()], text_columns=0)
    report.table(f"Sent to a server, from number {first}", ("outcome", "requests"), sorted(outcomes.items()))
    report.answered(tally)
    report.equal("damaged requests without an answer", count - sum(outcomes.values()), 0)
    strange = {name: number for name, number in outcomes.items() if not name.startswith(_ENDS)}
    report.equal("damaged requests that ended in another way than an error of theirs", strange, {})
    report.equal("exceptions in the server's log", raw[:5], [])
    report.equal("lines about restarts", restarts, [])
    report.most("an answer to a damaged request", slowest, _HANG_S / 2, " s")
    report.most("sum of PSS", peak, _BUDGET_MIB, " MiB")


# Triton 2.51 answers malformed JSON with 500.
_ENDS = (
    *("http 200", "http 400", "http 404", "http 405", "http 411", "http 413", "http 500 from Triton", "http closed"),
    *("grpc OK", "grpc INVALID_ARGUMENT", "grpc NOT_FOUND", "grpc UNIMPLEMENTED", "grpc INTERNAL from gRPC"),
    *("grpc UNAVAILABLE from Triton",),
)


def send(target: Target, number: int) -> tuple[str, float]:
    """Send a damaged request; returns how it ended, and after how many seconds."""
    chance = random.Random(f"served {number}")
    image = changed_bytes(chance, KINDS["images"].seeds())
    # Half of the requests are damaged in their image only.
    is_whole = number % 4 < 2
    model = chance.choice(_MODELS[:2] if is_whole else _MODELS)
    before = time.monotonic()
    outcome = (_send_http if number % 2 else _send_grpc)(target, chance, model, image, is_whole)
    return outcome, time.monotonic() - before


def _send_http(target: Target, chance: random.Random, model: str, image: bytes, is_whole: bool) -> str:
    parameters = {chance.choice(("thresh", "page", "x")): chance.choice((0.5, -1, "a", None, True, [1], 10**30))}
    prefix = None if is_whole else chance.choice((None, None, 0, len(image) + 1, 2**32 - 1))
    path, headers, body = http_request(model, image, prefix, None if is_whole else parameters)
    if not is_whole and chance.random() < 0.5:
        length = int(headers["Inference-Header-Content-Length"])
        head = changed_bytes(chance, [body[:length]])
        body = head + body[length:]
        headers["Inference-Header-Content-Length"] = str(chance.choice((len(head), length, 0, -1, 2**63, "x")))
    if not is_whole and chance.random() < 0.1:
        path = changed_bytes(chance, [path.encode()]).decode("latin-1").translate(dict.fromkeys(range(33))) or "/"
    connection = target.connection(_HANG_S)
    try:
        connection.putrequest("POST" if is_whole or chance.random() < 0.9 else "GET", path, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        answer = response.read()
        from_triton = " from Triton" if b" failed with " not in answer and b"Traceback" not in answer else ""
        return f"http {response.status}{from_triton if response.status >= 500 else ''}"
    except TimeoutError:
        return "http timed out"
    except Exception as error:  # closed by the server, or not sent at all
        return f"http closed ({type(error).__name__})"
    finally:
        connection.close()


def _send_grpc(target: Target, chance: random.Random, model: str, image: bytes, is_whole: bool) -> str:
    prefix = None if is_whole else chance.choice((None, None, 0, len(image) + 1, 2**32 - 1))
    message = grpc_request(model, image, prefix)
    if not is_whole and chance.random() < 0.3:
        message.inputs[0].shape[:] = [
            chance.choice((-1, 0, 1, 2, 8, 9, 2**32 + 1, 2**62)) for _ in range(chance.randrange(4))
        ]
    if not is_whole and chance.random() < 0.3:
        message.inputs[0].datatype = chance.choice(("UINT8", "FP32", "", "x", "BYTES"))
    data = message.SerializeToString()
    if not is_whole and chance.random() < 0.5:
        data = changed_bytes(chance, [data])
    with target.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            call(data, timeout=_HANG_S)
        except grpc.RpcError as error:
            details = error.details() or ""
            from_triton = "" if " failed with " in details or "Traceback" in details else " from Triton"
            name = error.code().name
            if name == "INTERNAL":
                return f"grpc INTERNAL{' from gRPC' if from_triton else ''}"
            return f"grpc {name}{from_triton if name == 'UNAVAILABLE' else ''}"
    return "grpc OK"
