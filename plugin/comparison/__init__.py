"""Comparison of runs: settings that differ, results side by side, curves as text and as pictures."""
