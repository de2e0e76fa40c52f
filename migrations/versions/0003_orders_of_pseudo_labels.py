"""Pseudo-labels in the order of their entropy or confidence, by outcome, and those that a person changed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_REVIEWED = sa.text("reviewed_at IS NOT NULL")
_TABLE = "pseudo_labels"


def upgrade() -> None:
    """To this version."""
    op.drop_index("ix_pseudo_labels_job_id_entropy", _TABLE)
    for value in ("entropy", "confidence"):
        columns = ["job_id", "decision", value, "line"]
        op.create_index(f"ix_pseudo_labels_job_id_decision_{value}", _TABLE, columns)
    op.create_index("ix_pseudo_labels_job_id_outcome", _TABLE, ["job_id", "outcome", "line"])
    op.create_index(
        "ix_pseudo_labels_job_id_reviewed",
        _TABLE,
        ["job_id", "line"],
        postgresql_where=_REVIEWED,
        sqlite_where=_REVIEWED,
    )


def downgrade() -> None:
    """Back to the version before."""
    for name in ("reviewed", "outcome", "decision_confidence", "decision_entropy"):
        op.drop_index(f"ix_pseudo_labels_job_id_{name}", _TABLE)
    op.create_index("ix_pseudo_labels_job_id_entropy", _TABLE, ["job_id", "entropy", "line"])
