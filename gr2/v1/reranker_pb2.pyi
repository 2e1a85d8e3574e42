from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]

class CandidateStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CANDIDATE_STATUS_UNSPECIFIED: _ClassVar[CandidateStatus]
    CANDIDATE_STATUS_SCORED: _ClassVar[CandidateStatus]
    CANDIDATE_STATUS_UNKNOWN_ITEM: _ClassVar[CandidateStatus]
    CANDIDATE_STATUS_NOT_RANKED: _ClassVar[CandidateStatus]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_HIGH: Priority
PRIORITY_LOW: Priority
CANDIDATE_STATUS_UNSPECIFIED: CandidateStatus
CANDIDATE_STATUS_SCORED: CandidateStatus
CANDIDATE_STATUS_UNKNOWN_ITEM: CandidateStatus
CANDIDATE_STATUS_NOT_RANKED: CandidateStatus

class ItemIds(_message.Message):
    __slots__ = ("ints", "strings")
    INTS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    ints: _containers.RepeatedScalarFieldContainer[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ints: _Optional[_Iterable[int]] = ..., strings: _Optional[_Iterable[str]] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("request_id", "history", "candidates", "scores", "features", "top_n", "bundle", "fallback", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    history: ItemIds
    candidates: ItemIds
    scores: _containers.RepeatedScalarFieldContainer[float]
    features: _containers.RepeatedScalarFieldContainer[float]
    top_n: int
    bundle: str
    fallback: bool
    priority: Priority
    def __init__(self, request_id: _Optional[str] = ..., history: _Optional[_Union[ItemIds, _Mapping]] = ..., candidates: _Optional[_Union[ItemIds, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., features: _Optional[_Iterable[float]] = ..., top_n: _Optional[int] = ..., bundle: _Optional[str] = ..., fallback: bool = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class RankedItem(_message.Message):
    __slots__ = ("index", "int_id", "string_id", "score", "status")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INT_ID_FIELD_NUMBER: _ClassVar[int]
    STRING_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    index: int
    int_id: int
    string_id: str
    score: float
    status: CandidateStatus
    def __init__(self, index: _Optional[int] = ..., int_id: _Optional[int] = ..., string_id: _Optional[str] = ..., score: _Optional[float] = ..., status: _Optional[_Union[CandidateStatus, str]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("parse_ns", "lookup_ns", "trie_ns", "model_ns", "rank_ns", "total_ns", "queue_ns")
    PARSE_NS_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_NS_FIELD_NUMBER: _ClassVar[int]
    TRIE_NS_FIELD_NUMBER: _ClassVar[int]
    MODEL_NS_FIELD_NUMBER: _ClassVar[int]
    RANK_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    parse_ns: int
    lookup_ns: int
    trie_ns: int
    model_ns: int
    rank_ns: int
    total_ns: int
    queue_ns: int
    def __init__(self, parse_ns: _Optional[int] = ..., lookup_ns: _Optional[int] = ..., trie_ns: _Optional[int] = ..., model_ns: _Optional[int] = ..., rank_ns: _Optional[int] = ..., total_ns: _Optional[int] = ..., queue_ns: _Optional[int] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("request_id", "ranking", "bundle_version", "timings", "unknown_history", "fallback")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_HISTORY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    ranking: _containers.RepeatedCompositeFieldContainer[RankedItem]
    bundle_version: str
    timings: Timings
    unknown_history: int
    fallback: bool
    def __init__(self, request_id: _Optional[str] = ..., ranking: _Optional[_Iterable[_Union[RankedItem, _Mapping]]] = ..., bundle_version: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., unknown_history: _Optional[int] = ..., fallback: bool = ...) -> None: ...
