"""Everything that runs: the trainer and what it needs, and the scripts that people type.

Imports all other packages and is imported by none of them.
"""
