"""Alembic migrations of the store's tables, for SQLite and PostgreSQL."""
