"""The dashboard: one document, its assets, and the routes that serve them. It speaks the public API only."""
