"""One module per kind of thing in the URL; a route is a few statements."""
