"""The uploads of one tenant: declared, completed, named by jobs, deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, tuple_, update

from search.errors import NotFound
from search.files import no_such_upload, upload_in
from service.store.accounts import noted
from service.store.engine import reading, writing
from service.store.idempotency import carry_out
from service.store.quotas import admit_bytes
from service.store.tables import jobs, now, teachers, uploads
from service.store.values import Caller, Cursor, InUse, Once, Upload, Whole
from workers.ids import new_id

_POINTER = "/teacher/weights"


class SqlUploads:
    """`service.store.ports.Uploads` of the caller's tenant. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller) -> None:
        self._engine, self._caller = engine, caller

    def declare(self, size: int, sha256: str, once: Once | None = None) -> tuple[Upload, bool]:
        upload_id = new_id("upl")

        def make(connection: Connection) -> Upload:
            row = {"id": upload_id, "tenant": self._caller.tenant, "created_at": now(), "bytes": size, "sha256": sha256}
            connection.execute(insert(uploads).values(row))
            noted(connection, self._caller, "uploads.create", upload_id)
            admit_bytes(connection, self._caller.tenant, size, pointer="/bytes")
            return _upload(self._find(connection, upload_id))

        return carry_out(self._engine, self._caller, once, upload_id, make, self._given)

    def upload(self, upload_id: str) -> Upload:
        with reading(self._engine) as connection:
            return _upload(self._find(connection, upload_id))

    def uploads(self, *, limit: int, before: Cursor | None = None) -> Sequence[Upload]:
        query = select(uploads).where(uploads.c.tenant == self._caller.tenant, uploads.c.deleted_at.is_(None))
        if before is not None:
            query = query.where(tuple_(uploads.c.created_at, uploads.c.id) < before)
        query = query.order_by(uploads.c.created_at.desc(), uploads.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_upload(row) for row in connection.execute(query)]

    def complete(self, upload_id: str) -> Upload:
        with writing(self._engine) as connection:
            row = self._find(connection, upload_id, lock=True)
            if row.completed_at is not None:
                raise Whole(upload_id)
            admit_bytes(connection, self._caller.tenant, row.bytes)
            connection.execute(update(uploads).where(uploads.c.id == upload_id).values(completed_at=now()))
            noted(connection, self._caller, "uploads.content", upload_id)
            return _upload(self._find(connection, upload_id))

    def delete(self, upload_id: str) -> None:
        with writing(self._engine) as connection:
            if self._find(connection, upload_id, lock=True, deleted=True).deleted_at is not None:
                return
            user = _user_of(connection, self._caller.tenant, upload_id)
            if user is not None:
                raise InUse(f"{user} uses the upload {upload_id}; delete that first, or wait for its end")
            connection.execute(update(uploads).where(uploads.c.id == upload_id).values(deleted_at=now()))
            noted(connection, self._caller, "uploads.delete", upload_id)

    def check(self, upload_id: str) -> None:
        with reading(self._engine) as connection:
            if connection.execute(_complete(self._caller.tenant, upload_id)).one_or_none() is None:
                raise no_such_upload(upload_id, _POINTER)

    def _given(self, connection: Connection, upload_id: str) -> Upload:
        return _upload(self._find(connection, upload_id))

    def _find(self, connection: Connection, upload_id: str, *, lock: bool = False, deleted: bool = False) -> Row[Any]:
        query = select(uploads).where(uploads.c.tenant == self._caller.tenant, uploads.c.id == upload_id)
        if not deleted:
            query = query.where(uploads.c.deleted_at.is_(None))
        row = connection.execute(query.with_for_update(key_share=True) if lock else query).one_or_none()
        if row is None:
            raise NotFound(f"there is no upload `{upload_id[:64]}`")
        return row


def hold(connection: Connection, tenant: str, teacher: Mapping[str, Any]) -> str | None:
    """
    The id of the upload that the weights of a teacher name, if they name one. Nobody deletes it until the transaction
    ends.

    Raises:
        UserError: the tenant has no such upload, or it is not complete.
    """
    upload_id = upload_in(teacher.get("weights"))
    if upload_id is None:
        return None
    if connection.execute(_complete(tenant, upload_id).with_for_update(read=True)).one_or_none() is None:
        raise no_such_upload(upload_id, _POINTER)
    return upload_id


def _complete(tenant: str, upload_id: str) -> Any:
    mine = select(uploads.c.id).where(uploads.c.tenant == tenant, uploads.c.id == upload_id)
    return mine.where(uploads.c.completed_at.is_not(None), uploads.c.deleted_at.is_(None))


def _user_of(connection: Connection, tenant: str, upload_id: str) -> str | None:
    """The id of a teacher that is registered, or of a job that has not ended, with the upload as its weights."""
    by_teacher = select(teachers.c.id).where(
        teachers.c.tenant == tenant, teachers.c.upload == upload_id, teachers.c.deleted_at.is_(None)
    )
    named = jobs.c.spec["teacher", "weights"].as_string() == f"upload:{upload_id}"
    by_job = select(jobs.c.id).where(jobs.c.tenant == tenant, jobs.c.ended_at.is_(None), named)
    for query in (by_teacher, by_job):
        found = connection.execute(query.limit(1)).scalar_one_or_none()
        if found is not None:
            return str(found)
    return None


def _upload(row: Row[Any]) -> Upload:
    return Upload(row.id, row.bytes, row.sha256, row.created_at, row.completed_at)
