"""What hostile clients do, one file a kind, each bounded in count and in time.

An attack is a coroutine `attack(target)`; it goes on until it is cancelled or has nothing left to send, and what it tells
`target` is shown beside the measurements.
"""
