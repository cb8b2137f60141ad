"""The Catalog service: items and users come, change and go between two generations. Checked, durable, applied, then
answered.

When a call returns, this server's next answer knows of it, and so does that of every other server of the store.

An id that a call gives twice counts once: of an upsert the last valid item is taken; patches are merged, and of a field
given twice the last value counts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import grpc

from candidate_gen.features import FeatureTable
from candidate_gen.search_text import FIELDS
from protos import catalog_pb2
from protos.catalog_pb2 import (
    CatalogItem,
    CatalogResponse,
    CatalogResult,
    CatalogStatus,
    CatalogUser,
    DeleteItemsRequest,
    ForgetUserRequest,
    ForgetUserResponse,
    ItemPatch,
    PatchItemsRequest,
    UpsertItemsRequest,
    UpsertUsersRequest,
)
from serving import codec
from serving.admission import Admission
from serving.changes import PRICE, defaulted, embedded_badly, held, values_of
from serving.clock import now_ms
from serving.codec import InvalidRequest
from serving.generation import Generation
from serving.log.catalog_log import Change
from serving.observability.telemetry import Telemetry
from serving.parts import deadline
from serving.rpc import CatalogFull, Handlers, Unavailable, handlers
from serving.settings import ServiceSettings
from serving.state.redis_store import StateUnavailable

MAX_ENTRIES = 1000
MAX_DESCRIPTION_CHARS = 10_000
MAX_TAIL = 200_000
"""Rows added since the last build: they are searched one by one."""

MAX_USERS = 200_000
"""Users told of since the last build: their columns are held in memory."""

_Request = TypeVar(
    "_Request", UpsertItemsRequest, DeleteItemsRequest, PatchItemsRequest, UpsertUsersRequest, ForgetUserRequest
)
_Batch = TypeVar("_Batch", UpsertItemsRequest, DeleteItemsRequest, PatchItemsRequest, UpsertUsersRequest)
_Entry = TypeVar("_Entry", CatalogItem, ItemPatch, CatalogUser, str)
Accepted = tuple[Change | None, list[CatalogResult]]
"""What is to be logged, None for nothing; and one result for each entry of the request."""


class ChangingCatalog(Protocol):
    """`Generations` is one."""

    @property
    def active(self) -> Generation | None: ...
    def change(self, plan: Callable[[Generation], Change | None], *, time_ms: int) -> int: ...


class Forgetful(Protocol):
    """`UserState` is one."""

    def forget(self, user_id: str) -> None: ...


class CatalogService:
    """One call after the other.

    Args:
        state: what else is known of users; None where there is nothing.
    """

    def __init__(
        self,
        generations: ChangingCatalog,
        *,
        telemetry: Telemetry,
        settings: ServiceSettings,
        state: Forgetful | None = None,
    ) -> None:
        self._generations = generations
        self._state = state
        self._telemetry = telemetry
        self._settings = settings
        self.admission = Admission(running=1, waiting=settings.waiting)

    def handlers(self) -> Handlers:
        return handlers(
            catalog_pb2.DESCRIPTOR.services_by_name["Catalog"],
            self._telemetry,
            methods={
                "UpsertItems": self.upsert_items,
                "DeleteItems": self.delete_items,
                "PatchItems": self.patch_items,
                "UpsertUsers": self.upsert_users,
                "ForgetUser": self.forget_user,
            },
        )

    def upsert_items(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        request = _parsed(UpsertItemsRequest(), wire)
        codec.check_whole("the number of items", len(request.items), 1, MAX_ENTRIES)
        return self._change(request, accepted_items, context)

    def delete_items(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        request = _parsed(DeleteItemsRequest(), wire)
        codec.check_whole("the number of item_ids", len(request.item_ids), 1, MAX_ENTRIES)
        return self._change(request, accepted_ids, context)

    def patch_items(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        request = _parsed(PatchItemsRequest(), wire)
        codec.check_whole("the number of patches", len(request.patches), 1, MAX_ENTRIES)
        return self._change(request, accepted_patches, context)

    def upsert_users(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        request = _parsed(UpsertUsersRequest(), wire)
        codec.check_whole("the number of users", len(request.users), 1, MAX_ENTRIES)
        return self._change(request, accepted_users, context)

    def forget_user(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        """The record first: from then on no server uses what is stored, whether or not it can be deleted."""
        request = _parsed(ForgetUserRequest(), wire)
        check_user_id(request.user_id)
        codec.check_string("reference", request.reference, codec.MAX_ID_CHARS)
        with self.admission.enter(deadline(context, self._settings)):
            record = self._logged(lambda _: request)
        try:
            if self._state is not None:
                self._state.forget(request.user_id)
        except StateUnavailable as error:
            raise Unavailable(
                f"record {record}: the user is forgotten, but the user state cannot be deleted now, so send this "
                f"again: {error}"
            ) from error
        self._telemetry.add("catalog", "forgotten")
        return ForgetUserResponse(audit_id=str(record)).SerializeToString()

    def _logged(self, plan: Callable[[Generation], Change | None]) -> int:
        if self._generations.active is None:
            raise Unavailable("no generation is active yet, so there is nothing to change")
        return self._generations.change(plan, time_ms=now_ms())

    def _change(
        self, request: _Batch, accept: Callable[[_Batch, Generation], Accepted], context: grpc.ServicerContext
    ) -> bytes:
        response = CatalogResponse()
        unusable: Counter[str] = Counter()

        def plan(generation: Generation) -> Change | None:
            change, results = accept(request, generation)
            del response.results[:]
            response.results.extend(results)
            unusable.clear()
            unusable.update(defaulted(change, generation.table))
            return change

        with self.admission.enter(deadline(context, self._settings)):
            self._logged(plan)
        for result in response.results:
            self._telemetry.add("catalog", CatalogStatus.Name(result.status))
        for name, count in unusable.items():
            self._telemetry.add("defaulted", name, count)
        return response.SerializeToString()


def accepted_items(request: UpsertItemsRequest, generation: Generation) -> Accepted:
    """
    Raises:
        CatalogFull: where they do not fit before the next generation.
    """
    table = generation.table
    texts = [name for name in generation.lexical.boosts if name not in FIELDS]
    reasons = [_reason(partial(check_item, texts=texts), item, table) for item in request.items]
    last = {item.item_id: item for item, reason in zip(request.items, reasons, strict=True) if not reason}
    chosen = list(last.values())
    if chosen:
        badly = embedded_badly(chosen, table=table, towers=generation.towers).tolist()
        refused = {chosen[n].item_id for n in badly}
        reasons = [
            reason or ("item: its vector is not finite or of length 0" if item.item_id in refused else "")
            for item, reason in zip(request.items, reasons, strict=True)
        ]
        chosen = [item for item in chosen if item.item_id not in refused]
    _check_room(generation, len(chosen))
    results = [_result(item.item_id, rejected=reason) for item, reason in zip(request.items, reasons, strict=True)]
    return UpsertItemsRequest(items=chosen) if chosen else None, results


def accepted_ids(request: DeleteItemsRequest, generation: Generation) -> Accepted:
    """An id that is not there (any more) is UNKNOWN."""
    reasons = [_reason(check_id, item_id, generation.table) for item_id in request.item_ids]
    known = held(generation.items, request.item_ids) >= 0
    results = [
        _result(item_id, rejected=reason, known=bool(there))
        for item_id, reason, there in zip(request.item_ids, reasons, known, strict=True)
    ]
    chosen = dict.fromkeys(each.id for each in results if each.status == CatalogStatus.CATALOG_STATUS_DONE)
    return DeleteItemsRequest(item_ids=chosen) if chosen else None, results


def accepted_patches(request: PatchItemsRequest, generation: Generation) -> Accepted:
    """
    Raises:
        CatalogFull: where the new rows do not fit before the next generation.
    """
    reasons = [_reason(check_patch, patch, generation.table) for patch in request.patches]
    known = held(generation.items, [patch.item_id for patch in request.patches]) >= 0
    merged: dict[str, ItemPatch] = {}
    results = []
    for patch, reason, there in zip(request.patches, reasons, known, strict=True):
        results.append(_result(patch.item_id, rejected=reason, known=bool(there)))
        if there and not reason:
            merged.setdefault(patch.item_id, ItemPatch()).MergeFrom(patch)
    _check_room(generation, sum(bool(values_of(patch)) for patch in merged.values()))
    return PatchItemsRequest(patches=merged.values()) if merged else None, results


def accepted_users(request: UpsertUsersRequest, generation: Generation) -> Accepted:
    """
    Raises:
        CatalogFull: where they are too many before the next generation.
    """
    reasons = [_reason(check_user, user, generation.table) for user in request.users]
    chosen = {user.user_id: user for user, reason in zip(request.users, reasons, strict=True) if not reason}
    held = len(generation.profiles.changed)
    if held + len(chosen) > MAX_USERS:
        raise CatalogFull(
            f"{held} users were told of since generation {generation.id} was built, {len(chosen)} more exceed the "
            f"{MAX_USERS} that can be; build the next one with `cascade rebuild`, then send this again"
        )
    results = [_result(user.user_id, rejected=reason) for user, reason in zip(request.users, reasons, strict=True)]
    return UpsertUsersRequest(users=chosen.values()) if chosen else None, results


def check_user(user: CatalogUser, table: FeatureTable) -> None:
    """Id and texts within bounds, attributes declared."""
    check_user_id(user.user_id)
    codec.check_values("attributes", user.attributes)
    codec.check_columns("attributes", user.attributes, table.profile)


def check_user_id(user_id: str) -> None:
    if not 1 <= len(user_id) <= codec.MAX_ID_CHARS:
        raise InvalidRequest("user_id", f"an id of {len(user_id)} characters", f"1 to {codec.MAX_ID_CHARS}")


def check_id(item_id: str, _table: FeatureTable) -> None:
    """
    Raises:
        InvalidRequest: as all checks here do, naming the field, its value and what is allowed.
    """
    if not 1 <= len(item_id) <= codec.MAX_ID_CHARS:
        raise InvalidRequest("item_id", f"an id of {len(item_id)} characters", f"1 to {codec.MAX_ID_CHARS}")


def check_item(item: CatalogItem, table: FeatureTable, *, texts: Sequence[str] = ()) -> None:
    """Ids, texts and numbers within bounds, attributes declared.

    Args:
        texts: columns that are declared for search alone.
    """
    check_id(item.item_id, table)
    codec.check_string("title", item.title, codec.MAX_TEXT_CHARS)
    codec.check_string("category", item.category, codec.MAX_ID_CHARS)
    codec.check_string("creator", item.creator, codec.MAX_ID_CHARS)
    codec.check_string("description", item.description, MAX_DESCRIPTION_CHARS)
    codec.check_whole("published_ms", item.published_ms, 0, codec.MAX_TIME_MS)
    _check_values(item, table, texts)


def check_patch(patch: ItemPatch, table: FeatureTable) -> None:
    """As of an item; and it must change something."""
    check_id(patch.item_id, table)
    if not (patch.attributes or patch.HasField("price") or patch.HasField("available")):
        raise InvalidRequest("patch", "nothing", "available, price or attributes")
    _check_values(patch, table)


def _check_values(item: CatalogItem | ItemPatch, table: FeatureTable, texts: Sequence[str] = ()) -> None:
    columns = table.item_columns
    codec.check_values("attributes", item.attributes)
    codec.check_columns("attributes", item.attributes, columns, texts=texts)
    if not item.HasField("price"):
        return
    if not any(column.name == PRICE and column.kind == "number" for column in columns):
        raise InvalidRequest("price", item.price, "unset, for this generation has no item column of numbers 'price'")
    if not abs(item.price) <= codec.MAX_VALUE:
        raise InvalidRequest("price", item.price, f"-{codec.MAX_VALUE:g} to {codec.MAX_VALUE:g}")
    if PRICE in item.attributes:
        raise InvalidRequest("price", item.price, "once, as the field or as the attribute")


def _check_room(generation: Generation, rows: int) -> None:
    if generation.tail + rows > MAX_TAIL:
        raise CatalogFull(
            f"{generation.tail} rows were added since generation {generation.id} was built, {rows} more exceed the "
            f"{MAX_TAIL} that can be; build the next one with `cascade rebuild`, then send this again"
        )


def _reason(check: Callable[[_Entry, FeatureTable], None], entry: _Entry, table: FeatureTable) -> str:
    try:
        check(entry, table)
    except InvalidRequest as error:
        return str(error)
    return ""


def _result(item_id: str, *, rejected: str, known: bool = True) -> CatalogResult:
    if rejected:
        return CatalogResult(id=item_id, status=CatalogStatus.CATALOG_STATUS_REJECTED, reason=rejected)
    done, unknown = CatalogStatus.CATALOG_STATUS_DONE, CatalogStatus.CATALOG_STATUS_UNKNOWN
    return CatalogResult(id=item_id, status=done if known else unknown)


def _parsed(request: _Request, wire: bytes) -> _Request:
    codec.parse(request, wire)
    return request
