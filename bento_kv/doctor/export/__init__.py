"""The export layer of anybody's decoder: what it declares, which sizes it takes, what it computes."""
