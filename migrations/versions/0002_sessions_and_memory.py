"""Sessions of browsers, and how much memory workers take."""

import sqlalchemy as sa
from alembic import op

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "sessions",
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_sessions_key_id")),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_sessions")),
    )
    op.add_column("workers", sa.Column("memory_bytes", INTEGER, nullable=True))
    op.add_column("workers", sa.Column("gpu_memory_bytes", INTEGER, nullable=True))


def downgrade() -> None:
    """Back to the version before."""
    op.drop_column("workers", "gpu_memory_bytes")
    op.drop_column("workers", "memory_bytes")
    op.drop_table("sessions")
