"""Parameters of migrations: what cannot be used is refused where it is written."""

from __future__ import annotations

from typing import Any

import pytest
from vmferry.protocol.errors import ParameterError
from vmferry.receiver.coordinator import ReceiveParameters
from vmferry.sender.parameters import SendParameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_bandwidth", "10M"),
        ("max_bandwidth", -1),
        ("max_bandwidth", 1.5),
        ("downtime_limit", -1),
        ("downtime_limit", "300ms"),
        ("downtime_limit", float("nan")),
        ("downtime_limit", 2000.1),
        ("workers", -1),
        ("workers", 65),
        ("xbzrle_cache_size", -4096),
    ],
)
def test_unusable_value(name: str, value: Any) -> None:
    """Broken: it would fail in another process, with a message about something else, or never."""
    with pytest.raises(ParameterError, match=f"^{name}: {value!r} is not "):
        SendParameters(**{name: value})


@pytest.mark.parametrize("value", ["gzip", "zstd:0", "zstd:fast"])
def test_unusable_compression(value: str) -> None:
    """Broken: the error would not say which parameter it is about."""
    with pytest.raises(ParameterError, match=r"^compress: "):
        SendParameters(compress=value)


def test_unusable_workers_of_the_receiver() -> None:
    """Broken: the receiver would listen, and fail when the source connects."""
    with pytest.raises(ParameterError, match=r"^workers: 100 is not .* of 0 to 64$"):
        ReceiveParameters(workers=100)


def test_usual_values() -> None:
    """Broken: what every caller uses would be refused."""
    SendParameters()
    SendParameters(max_bandwidth=0, downtime_limit=0, workers=0, xbzrle_cache_size=1)
    ReceiveParameters(workers=64)
