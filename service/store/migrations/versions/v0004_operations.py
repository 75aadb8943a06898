"""
Jobs that are paused, changed, repeated and taken out; uploads, teachers and datasets on record; webhooks and what is to
be sent to them; the log of a job; requests that must not be carried out twice.

Everything is added and nothing is changed, so a version that knows none of it may go on beside this one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("pause_requested_at", sa.BigInteger))
    op.add_column("jobs", sa.Column("parent", sa.Text))
    op.add_column("jobs", sa.Column("deleted_at", sa.BigInteger))
    op.add_column("jobs", sa.Column("traceparent", sa.Text))
    op.create_index("ix_trials_by_state", "trials", ["job_id", "state"])
    op.create_index("ix_scores_at", "scores", ["at"])
    op.create_table(
        "idempotency",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "route", "key", name="pk_idempotency"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_idempotency_tenant"),
    )
    op.create_table(
        "logs",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("logger", sa.Text, nullable=False),
        sa.Column("trial", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_logs"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_logs_job_id"),
    )
    op.create_table(
        "uploads",
        *_of_a_tenant("uploads"),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("deleted_at", sa.BigInteger),
    )
    op.create_table(
        "teachers",
        *_of_a_tenant("teachers"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("upload", sa.Text),
        sa.Column("deleted_at", sa.BigInteger),
        sa.ForeignKeyConstraint(["upload"], ["uploads.id"], name="fk_teachers_upload"),
    )
    op.create_table(
        "datasets",
        *_of_a_tenant("datasets"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("deleted_at", sa.BigInteger),
    )
    op.create_table(
        "webhooks",
        *_of_a_tenant("webhooks"),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("kinds", sa.JSON, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.Column("deleted_at", sa.BigInteger),
    )
    for table in ("uploads", "teachers", "datasets", "webhooks"):
        op.create_index(f"ix_{table}_of_tenant", table, ["tenant", "created_at", "id"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("webhook_id", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("seq", sa.Integer),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("delivered_at", sa.BigInteger),
        sa.Column("dead_at", sa.BigInteger),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_deliveries_webhook_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_deliveries_job_id"),
        sa.UniqueConstraint("webhook_id", "job_id", "seq", name="uq_deliveries_webhook_id_job_id_seq"),
        sa.CheckConstraint(
            "(next_at IS NULL) = (delivered_at IS NOT NULL OR dead_at IS NOT NULL)", name=op.f("ck_deliveries_next")
        ),
        sa.CheckConstraint("(job_id IS NULL) = (seq IS NULL)", name=op.f("ck_deliveries_event")),
    )
    due = sa.text("next_at IS NOT NULL")
    op.create_index("ix_deliveries_due", "deliveries", ["next_at"], sqlite_where=due, postgresql_where=due)
    dead = sa.text("dead_at IS NOT NULL")
    op.create_index("ix_deliveries_dead", "deliveries", ["dead_at"], sqlite_where=dead, postgresql_where=dead)
    op.create_index("ix_deliveries_newest", "deliveries", ["webhook_id", "created_at", "id"])
    op.create_table(
        "tallies",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tallies"),
    )


def _of_a_tenant(table: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=f"fk_{table}_tenant"),
    ]
