"""What dlt returns and raises, so that it survives any number of journeys between processes."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from dlt.common.schema import Schema
from dlt.pipeline.exceptions import PipelineStepFailed
from typing_extensions import override

Info = TypeVar("Info")


class PortableSchema(Schema):
    """A schema that can be copied and sent on again where it has arrived.

    dlt leaves out of a pickled schema what it cannot send, and does not make it anew: the copy that arrives can neither
    be pickled nor copied. Prefect does so with what a task returns, once or several times, depending on what runs it.
    """

    @classmethod
    def of(cls, schema: Schema) -> PortableSchema:
        """Return a schema as a portable one; it shares all that it has with the original."""
        portable = cls.__new__(cls)
        portable.__dict__.update(schema.__dict__)
        return portable

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.to_dict(bump_version=False),)


def _arrived(stored: Any) -> PortableSchema:
    return cast("PortableSchema", PortableSchema.from_stored_schema(stored))


def portable(info: Info) -> Info:
    """Return what dlt tells of a step, a `LoadInfo` for example, with portable schemas; anything else as it is."""
    packages = getattr(info, "load_packages", None)
    if not packages or not isinstance(info, tuple):
        return info
    sturdy = [package._replace(schema=PortableSchema.of(package.schema)) for package in packages]
    return cast("Info", cast("Any", info)._replace(load_packages=sturdy))


def make_portable(error: BaseException | None) -> None:
    """Make what dlt's error tells of the failed step portable, so that the error is."""
    if isinstance(error, PipelineStepFailed):
        error.step_info = portable(error.step_info)
