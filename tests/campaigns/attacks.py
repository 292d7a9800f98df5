# SPDX-License-Identifier: Apache-2.0
"""Good clients while others attack: each attack in turn, on Triton's own ports or, with --public, at the front door.

The good clients' answers stay right and about as fast as without attack, bad requests end in an error of theirs.
"""

import argparse
import re
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ocdserve.backend.serve.process.processes import find_stubs
from ocdserve.perf.load.memory import process_tree
from tests.campaigns.attack_cases import ATTACKS, Attack, Victim
from tests.campaigns.clients import HEADERS, Load, Plan, Tally
from tests.campaigns.report import Report
from tests.campaigns.serving import Sampler, Server, pictures, right_answers, serving, small_bundle

_DOOR = re.compile(r"^ocdserve: open to anybody: http://(\S+)", re.MULTILINE)
_MOST_PSS_MIB = 2048.0
# Of p99 with attack: so many times that without, and seconds.
_SLOWER, _MARGIN_S = 3.0, 2.0
_REFUSED = re.compile(
    # UNAVAILABLE is Triton's answer to a restricted RPC.
    "4..|closed|INVALID_ARGUMENT|UNAVAILABLE|PERMISSION_DENIED|UNIMPLEMENTED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|NOT_FOUND"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--public", action="store_true", help="attack the front door instead of Triton's own ports")
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("--attack", choices=names, action="append", help="only this one (may be repeated)")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    attacks = [attack for attack in ATTACKS if args.public or attack.triton]
    attacks = [attack for attack in attacks if not args.attack or attack.name in args.attack]
    requests = 100 if args.short else 1000
    options = ("--public", "0", "--rate", "0") if args.public else ()
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "small")
        with serving(bundle.model_path.parent, *options) as server:
            target = server.target
            if args.public:
                door = _DOOR.search("\n".join(server.lines()))
                assert door, server.lines()
                target = replace(target, http=door[1], grpc=door[1])
            plan = Plan(target, images, right_answers(target, images, bundle), requests=requests)
            (server_pid,) = [pid for pid in process_tree(server.pid) if find_stubs(pid)]
            victim = Victim(target, images[0], find_stubs(server_pid)[0].segment, large=not args.short)
            with Load(plan) as load:
                calm = load.tally()
            report.say(f"without attack: {calm.right} right, p99 {calm.latency_s(99):.3f} s")
            rows: list[tuple[object, ...]] = [("none", *calm.row(), "")]
            bad: list[tuple[str, str, str, int]] = []
            for attack in attacks:
                rows.append(_attacked(report, attack, server, plan, victim, calm, bad))
    where = "the front door" if args.public else "Triton's own ports"
    report.table(f"Good requests at {where}", ("attack", *HEADERS, "PSS MiB"), rows)
    report.table("Bad requests", ("attack", "what", "ended in", "requests"), bad, text_columns=3)


def _attacked(
    report: Report,
    attack: Attack,
    server: Server,
    plan: Plan,
    victim: Victim,
    calm: Tally,
    bad: list[tuple[str, str, str, int]],
) -> tuple[object, ...]:
    """Attack until the good clients are done; returns the row of the attack."""
    ends: Counter[tuple[str, str]] = Counter()
    done = threading.Event()
    # The first round prepares its files; it counts, but nobody is measured next to it.
    ends.update(attack.round(victim))

    def attacker() -> None:
        while not done.is_set():
            ends.update(attack.round(victim))

    threads = [threading.Thread(target=attacker, daemon=True) for _ in range(attack.clients)]
    before = server.restarts()
    with Sampler(server, 0.2) as sampler, Load(plan) as load:
        for thread in threads:
            thread.start()
        tally = load.tally()
        done.set()
        for thread in threads:
            thread.join()
    limit = _SLOWER * calm.latency_s(99) + _MARGIN_S
    strange = {
        end: count for end, count in ends.items() if not (_REFUSED.fullmatch(end[1]) or end[1] in attack.harmless)
    }
    bad += [(attack.name, *end, count) for end, count in sorted(ends.items())]
    report.equal(f"{attack.name}: right answers", tally.right, plan.requests)
    report.most(f"{attack.name}: p99 of good requests", tally.latency_s(99), limit, " s")
    report.equal(f"{attack.name}: bad requests that were not refused", strange, {})
    report.most(f"{attack.name}: sum of PSS", sampler.peak_pss_mib(), _MOST_PSS_MIB, " MiB")
    report.equal(f"{attack.name}: lines about restarts", server.restarts()[len(before) :], [])
    time.sleep(1)
    return attack.name, *tally.row(), sampler.peak_pss_mib()
