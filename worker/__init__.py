"""The work: supervisors that own units under a lease, and the runner processes that do them. No web."""
