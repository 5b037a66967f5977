"""Other projects that ours is measured beside: each in an environment and a process of its own.

Nothing of them is ever imported here. Their scripts (``*_worker.py``) run under the interpreter that
:func:`benchmarks.peers.environment.peer_python` names.
"""
