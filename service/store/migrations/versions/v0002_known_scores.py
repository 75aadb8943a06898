"""Whether a score was known before its trial."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("scores", sa.Column("cached", sa.Boolean, nullable=False, server_default=sa.false()))
