# SPDX-License-Identifier: Apache-2.0
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ocdserve.backend.network import engine_library
from ocdserve.backend.network.engine_library import Messages, load


def in_a_thread(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_call_sees_its_own_messages_only() -> None:
    messages = Messages()
    messages.add("an old error", is_error=True)
    messages.add("an old warning", is_error=False)
    watch = messages.watch()
    assert (watch.errors(), watch.warnings(), watch.reason()) == ((), (), "it gave no reason")
    messages.add("new\n  error", is_error=True)
    messages.add("twice", is_error=False)
    messages.add("twice", is_error=False)
    assert (watch.errors(), watch.warnings()) == (("new error",), ("twice",))
    assert messages.watch().errors() == ()


def test_a_thread_s_reason_is_not_that_of_another() -> None:
    messages = Messages()
    watch = messages.watch()
    messages.add("mine", is_error=True)
    in_a_thread(lambda: messages.add("theirs", is_error=True))
    assert watch.reason() == "mine"


def test_without_an_error_of_the_thread_its_helpers_have_the_reason() -> None:
    messages = Messages()
    watch = messages.watch()
    for number in range(5):
        in_a_thread(lambda number=number: messages.add(f"error {number}", is_error=True))  # type: ignore[misc]
    assert watch.reason() == "error 2; error 3; error 4"


def test_messages_are_bounded_and_warnings_leave_errors_in_place() -> None:
    messages = Messages()
    watch = messages.watch()
    messages.add("the error", is_error=True)
    for number in range(1000):
        messages.add(f"warning {number}", is_error=False)
    assert watch.reason() == "the error"
    assert (len(watch.warnings()), watch.warnings()[-1]) == (256, "warning 999")


def test_messages_of_many_threads_arrive_while_they_are_read() -> None:
    messages = Messages()
    watch, begin = messages.watch(), threading.Barrier(5)

    def write() -> None:
        begin.wait()
        for number in range(500):
            messages.add(str(number), is_error=number % 2 == 0)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    begin.wait()
    while any(thread.is_alive() for thread in threads):
        watch.reason()
        watch.warnings()
    assert messages.watch().number == 2000


def test_the_library_s_logger_keeps_warnings_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    module = SimpleNamespace(ILogger=ILogger, init_libnvinfer_plugins=lambda logger, namespace: True, __version__="1")
    monkeypatch.setattr(engine_library.importlib, "import_module", lambda name: module)
    library = load.__wrapped__("tensorrt")
    watch = library.watch()
    for severity, text in enumerate(("internal", "error", "warning", "info", "verbose")):
        library.logger.log(severity, text)
    assert (watch.errors(), watch.warnings()) == (("internal", "error"), ("warning",))
