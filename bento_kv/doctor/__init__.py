"""The doctor: which layer of anybody's decoder is wrong, its export or its loop, and what to do first."""
