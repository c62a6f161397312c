"""BentoML's side: model store, build hook, runnable, tracing."""
