"""Grids of runs: declared in a config, made once each, set out in tables and figures."""
