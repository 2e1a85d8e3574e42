from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BundleInfo(_message.Message):
    __slots__ = ("name", "is_default", "serving", "label", "version", "model_sha256", "codebook_fingerprint", "graph", "device", "items", "id_type", "limits", "served_seconds", "swaps", "refusals", "reason", "draining")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    CODEBOOK_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SWAPS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    name: str
    is_default: bool
    serving: bool
    label: str
    version: str
    model_sha256: str
    codebook_fingerprint: str
    graph: str
    device: str
    items: int
    id_type: str
    limits: Limits
    served_seconds: float
    swaps: int
    refusals: int
    reason: str
    draining: int
    def __init__(self, name: _Optional[str] = ..., is_default: bool = ..., serving: bool = ..., label: _Optional[str] = ..., version: _Optional[str] = ..., model_sha256: _Optional[str] = ..., codebook_fingerprint: _Optional[str] = ..., graph: _Optional[str] = ..., device: _Optional[str] = ..., items: _Optional[int] = ..., id_type: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., served_seconds: _Optional[float] = ..., swaps: _Optional[int] = ..., refusals: _Optional[int] = ..., reason: _Optional[str] = ..., draining: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_candidates", "max_history", "max_request_bytes", "feature_width")
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    max_candidates: int
    max_history: int
    max_request_bytes: int
    feature_width: int
    def __init__(self, max_candidates: _Optional[int] = ..., max_history: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., feature_width: _Optional[int] = ...) -> None: ...

class ShadowInfo(_message.Message):
    __slots__ = ("bundle", "share", "compared", "dropped", "failed", "top1_disagreement", "kendall_tau")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TOP1_DISAGREEMENT_FIELD_NUMBER: _ClassVar[int]
    KENDALL_TAU_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    share: float
    compared: int
    dropped: int
    failed: int
    top1_disagreement: float
    kendall_tau: float
    def __init__(self, bundle: _Optional[str] = ..., share: _Optional[float] = ..., compared: _Optional[int] = ..., dropped: _Optional[int] = ..., failed: _Optional[int] = ..., top1_disagreement: _Optional[float] = ..., kendall_tau: _Optional[float] = ...) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("gr2_version", "uptime_seconds", "threads", "queue", "max_message_bytes", "tls", "tokens", "stopping", "bundles", "shadow")
    GR2_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    gr2_version: str
    uptime_seconds: float
    threads: int
    queue: int
    max_message_bytes: int
    tls: bool
    tokens: bool
    stopping: bool
    bundles: _containers.RepeatedCompositeFieldContainer[BundleInfo]
    shadow: ShadowInfo
    def __init__(self, gr2_version: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., threads: _Optional[int] = ..., queue: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., tls: bool = ..., tokens: bool = ..., stopping: bool = ..., bundles: _Optional[_Iterable[_Union[BundleInfo, _Mapping]]] = ..., shadow: _Optional[_Union[ShadowInfo, _Mapping]] = ...) -> None: ...
