"""What a server cannot be told."""

from __future__ import annotations

from typing import Any

import pytest

from gr2.errors import ConfigError
from gr2.serving.config import ServeConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert ServeConfig(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gr2.example", "localhost.example"])
def test_other_hosts_need_tls_or_to_be_asked_for(host: str) -> None:
    with pytest.raises(ConfigError, match="in clear text: give cert and key, or say insecure"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, insecure=True).cert == ""
    assert ServeConfig(host=host, cert="a", key="b").insecure is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cert": "a"}, "cert and key belong together"),
        ({"key": "a"}, "cert and key belong together"),
        ({"client_ca": "a"}, "takes TLS: give cert and key too"),
        ({"port": 65536}, r"port must be in 0\.\.65535"),
        ({"grace": -1.0}, "grace and poll are seconds"),
        ({"poll": -1.0}, "grace and poll are seconds"),
        ({"batch": 0}, r"a batch takes 1\.\.4096"),
    ],
)
def test_impossible_value_is_a_clear_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(**values)
