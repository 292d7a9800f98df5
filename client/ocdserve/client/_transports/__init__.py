# SPDX-License-Identifier: Apache-2.0
"""Transports: one protocol, adapters for gRPC and HTTP with and without asyncio, and mocks."""

from ocdserve.client._transports.base import AsyncTransport, Transport, async_transport_for, transport_for
from ocdserve.client._transports.mock import AsyncMockTransport, MockTransport

__all__ = [
    "AsyncMockTransport",
    "AsyncTransport",
    "MockTransport",
    "Transport",
    "async_transport_for",
    "transport_for",
]
