"""Which shard answered a row, as shards hold rows from all over the file."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version. Rows that are there do not know their shard."""
    op.add_column("pseudo_labels", sa.Column("shard", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Back to the version before."""
    op.drop_column("pseudo_labels", "shard")
