"""The loop layer: any program's loop, judged by its step trace."""
