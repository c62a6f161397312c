"""What helps to develop bento_kv and is not in the wheel."""
