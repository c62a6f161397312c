"""`bento-kv top`: what a running server does right now, from its metrics."""
