"""Which device runs what: plans, their routes, their cost, the search for the best. Pure."""
