"""apex: distributed prioritized experience replay (Ape-X and its descendants) as services.

The library holds no process and importing it has no side effects. The services under ``services/`` compose it.
"""

__version__ = "0.1.0"
