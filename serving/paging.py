"""Page tokens: what a page must know of those before it, so that any server of the store can go on with the answer.

A token is a `Page` with a checksum. It holds no secret and grants nothing: whoever makes one up can leave out items and
choose a seed, which every caller may. The checksum tells a token that was cut or mixed up from a whole one.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from hashlib import blake2b

from google.protobuf.message import DecodeError

from index.strings import keys64
from protos.impression_pb2 import Impression, Page

MAX_SHOWN = 1000
"""Items shown on all pages together, after which there is no next one."""
_CHECKSUM_BYTES = 8
QUESTION = (
    "kind",
    "tenant",
    "surface",
    "user_id",
    "text",
    "seed_item_ids",
    "exclude_item_ids",
    "rank_item_ids",
    "filter",
    "filter_mode",
    "boosts",
    "hybrid",
    "order_by",
    "query_options",
)
"""What stays the same from page to page."""


def question_of(asked: Impression) -> int:
    """Hash of what was asked, the same for every page."""
    question = Impression()
    for name in QUESTION:
        value, field = getattr(asked, name), asked.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            getattr(question, name).extend(value)
        elif field.message_type is None:
            setattr(question, name, value)
        elif asked.HasField(name):
            getattr(question, name).CopyFrom(value)
    return int.from_bytes(_checksum(question.SerializeToString(deterministic=True)), "little")


def next_page_token(shown: Impression) -> str:
    """The token for what follows a slate; empty where that is nothing."""
    before = shown.page
    keys = [*before.shown_item_key, *keys64(shown.item_id).tolist()]
    if not shown.more or len(keys) >= MAX_SHOWN:
        return ""
    page = Page(
        number=before.number + 1,
        first=before.first or shown.request_id,
        generation=shown.generation,
        catalog_seq=shown.catalog_seq,
        question=question_of(shown),
        shown_item_key=keys,
    )
    return _token(page.SerializeToString())


def page_of(token: str) -> Page | None:
    """What `next_page_token` made the token of; None where it is none."""
    try:
        wire = urlsafe_b64decode(token + "=" * (-len(token) % 4))[_CHECKSUM_BYTES:]
        page = Page.FromString(wire)
    except (Error, ValueError, DecodeError):
        return None
    return page if _token(wire) == token and page.number > 0 and page.first else None


def _token(wire: bytes) -> str:
    return urlsafe_b64encode(_checksum(wire) + wire).rstrip(b"=").decode()


def _checksum(wire: bytes) -> bytes:
    return blake2b(wire, digest_size=_CHECKSUM_BYTES, person=b"cascade-page").digest()
