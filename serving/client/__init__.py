"""A typed client, for threads and for asyncio.

Calls wait until a server is ready, have a deadline, and are sent again where that helps: it is safe, because every
request and every event carries an id that is stored once. Who lists several servers, `ipv4:host:port,host:port`, has
late slates asked of a second one (`serving.client.attempts`).
"""

from serving.client.aio import AsyncCascadeClient
from serving.client.attempts import CallFailed
from serving.client.blocking import CascadeClient
from serving.client.channels import SERVICE_CONFIG, Access
from serving.records import (
    CatalogAnswer,
    Event,
    EventAnswer,
    ItemChange,
    ItemEntry,
    ShownItem,
    ShownSlate,
    SuggestedLine,
    UserEntry,
    slate_of,
)

__all__ = [
    "SERVICE_CONFIG",
    "Access",
    "AsyncCascadeClient",
    "CallFailed",
    "CascadeClient",
    "CatalogAnswer",
    "Event",
    "EventAnswer",
    "ItemChange",
    "ItemEntry",
    "ShownItem",
    "ShownSlate",
    "SuggestedLine",
    "UserEntry",
    "slate_of",
]
