"""The job as values: parameters, their rules, and the faces generated from them."""
