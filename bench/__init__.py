"""Measures what memory-saving techniques for large language models really save, and what they cost.

For use from Python: `bench.results.store` (`read`, `records`, `write`), `bench.paths.results_place` for
folders behind URLs, and `bench.trial.spec.Trial`. The commands are the files beside this one.
"""

__version__ = "0.1.0"
