"""From a query to a few hundred candidates: the feature table, the two towers, the sources and the filters."""
