"""The last succeeded jobs of a base model, which estimates of the next one are learned from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SUCCEEDED = sa.text("status = 'succeeded'")
_NAME, _TABLE = "ix_jobs_model_finished_at", "jobs"


def upgrade() -> None:
    """To this version."""
    columns = ["model", "finished_at"]
    op.create_index(_NAME, _TABLE, columns, postgresql_where=_SUCCEEDED, sqlite_where=_SUCCEEDED)


def downgrade() -> None:
    """Back to the version before."""
    op.drop_index(_NAME, _TABLE)
