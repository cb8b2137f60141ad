from protos import impression_pb2 as _impression_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CatalogStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CATALOG_STATUS_UNSPECIFIED: _ClassVar[CatalogStatus]
    CATALOG_STATUS_DONE: _ClassVar[CatalogStatus]
    CATALOG_STATUS_UNKNOWN: _ClassVar[CatalogStatus]
    CATALOG_STATUS_REJECTED: _ClassVar[CatalogStatus]
CATALOG_STATUS_UNSPECIFIED: CatalogStatus
CATALOG_STATUS_DONE: CatalogStatus
CATALOG_STATUS_UNKNOWN: CatalogStatus
CATALOG_STATUS_REJECTED: CatalogStatus

class CatalogItem(_message.Message):
    __slots__ = ("item_id", "title", "category", "creator", "published_ms", "attributes", "price", "available", "description")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_MS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    category: str
    creator: str
    published_ms: int
    attributes: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    price: float
    available: bool
    description: str
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., category: _Optional[str] = ..., creator: _Optional[str] = ..., published_ms: _Optional[int] = ..., attributes: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ..., price: _Optional[float] = ..., available: _Optional[bool] = ..., description: _Optional[str] = ...) -> None: ...

class CatalogUser(_message.Message):
    __slots__ = ("user_id", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    attributes: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    def __init__(self, user_id: _Optional[str] = ..., attributes: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ...) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[CatalogItem]
    def __init__(self, items: _Optional[_Iterable[_Union[CatalogItem, _Mapping]]] = ...) -> None: ...

class DeleteItemsRequest(_message.Message):
    __slots__ = ("item_ids",)
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ItemPatch(_message.Message):
    __slots__ = ("item_id", "available", "price", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    available: bool
    price: float
    attributes: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    def __init__(self, item_id: _Optional[str] = ..., available: _Optional[bool] = ..., price: _Optional[float] = ..., attributes: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ...) -> None: ...

class PatchItemsRequest(_message.Message):
    __slots__ = ("patches",)
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    patches: _containers.RepeatedCompositeFieldContainer[ItemPatch]
    def __init__(self, patches: _Optional[_Iterable[_Union[ItemPatch, _Mapping]]] = ...) -> None: ...

class UpsertUsersRequest(_message.Message):
    __slots__ = ("users",)
    USERS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[CatalogUser]
    def __init__(self, users: _Optional[_Iterable[_Union[CatalogUser, _Mapping]]] = ...) -> None: ...

class CatalogResult(_message.Message):
    __slots__ = ("id", "status", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: CatalogStatus
    reason: str
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[CatalogStatus, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class CatalogResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CatalogResult]
    def __init__(self, results: _Optional[_Iterable[_Union[CatalogResult, _Mapping]]] = ...) -> None: ...

class ForgetUserRequest(_message.Message):
    __slots__ = ("user_id", "reference")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    reference: str
    def __init__(self, user_id: _Optional[str] = ..., reference: _Optional[str] = ...) -> None: ...

class ForgetUserResponse(_message.Message):
    __slots__ = ("audit_id", "impressions", "outcomes")
    AUDIT_ID_FIELD_NUMBER: _ClassVar[int]
    IMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    audit_id: str
    impressions: int
    outcomes: int
    def __init__(self, audit_id: _Optional[str] = ..., impressions: _Optional[int] = ..., outcomes: _Optional[int] = ...) -> None: ...
