"""Calls never go in clear text though files for TLS were given."""

from __future__ import annotations

import pytest

from gr2.client import Client
from gr2.credentials import channel_credentials
from gr2.errors import ConfigError
from gr2.load.plan import check_target

UNUSED = [("", "cert.pem", "key.pem"), ("", "cert.pem", ""), ("ca.pem", "cert.pem", ""), ("ca.pem", "", "key.pem")]


@pytest.mark.parametrize(("ca", "cert", "key"), UNUSED)
def test_a_certificate_that_would_not_be_used_is_refused(ca: str, cert: str, key: str) -> None:
    with pytest.raises(ConfigError, match="clear text"):
        Client("127.0.0.1:1", ca=ca, cert=cert, key=key)
    with pytest.raises(ConfigError, match="clear text"):
        check_target("127.0.0.1:1", b"", (ca, cert, key))


def test_nothing_given_is_clear_text() -> None:
    assert channel_credentials("", "", "") is None


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        channel_credentials("nowhere.pem", "", "")
