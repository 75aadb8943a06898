"""
What the trials of a job come to, kept at its end.

A version that knows nothing of it may go on beside this one: the jobs that it ends are counted when they are looked at.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "standings",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_standings"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_standings_job_id"),
    )
