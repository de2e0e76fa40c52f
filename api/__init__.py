"""The HTTP service. Imports no engine and no worker."""
