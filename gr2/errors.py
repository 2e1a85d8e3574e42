"""The exceptions of gr2. Every one carries a message for a person: what came, what was expected, how to mend it."""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BundleError",
    "ConfigError",
    "DataError",
    "Gr2Error",
    "MissingExtraError",
    "OverloadError",
    "RequestError",
    "UnservedError",
]


class Gr2Error(Exception):
    """Base class of what gr2 raises on purpose; the command line prints it without a traceback and exits with 2."""


class ConfigError(Gr2Error):
    """A configuration file, key or value that cannot be used."""


class DataError(Gr2Error):
    """An input file that breaks the data contract.

    `path`, `row` (1-based, header not counted) and `column` say where, as far as they are known.
    """

    def __init__(self, message: str, *, path: object = None, row: int | None = None, column: str | None = None) -> None:
        where = [str(path)] if path is not None else []
        if row is not None:
            where.append(f"row {row}")
        if column is not None:
            where.append(f"column {column!r}")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)
        self.path, self.row, self.column = path, row, column


class ArtifactError(Gr2Error):
    """A stage's artefact folder that is missing, damaged or of another version."""


class BundleError(Gr2Error):
    """A serving bundle that cannot be loaded: missing or altered file, unknown schema, wrong fingerprint."""


class RequestError(Gr2Error):
    """A request that breaks the API's rules. `field` names the offending field of `RerankRequest`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class OverloadError(Gr2Error):
    """The server cannot take the request now."""


class UnservedError(Gr2Error):
    """A bundle that the server knows and no version of which could be loaded."""


class MissingExtraError(Gr2Error):
    """A stage needs packages that the base installation does not bring."""

    def __init__(self, what: str, extra: str, cause: ImportError) -> None:
        super().__init__(f"{what} needs the {extra!r} extra ({cause}); install it with: pip install 'gr2[{extra}]'")
