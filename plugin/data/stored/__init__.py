"""Stored tokens that `prepare` wrote: their manifest, their documents, and the order of a run."""
