"""BentoML's side: model store, build hook, runnable, arguments, the packaged service, tracing."""
