"""Job as values: every parameter once, its rules, and the faces generated from them."""
