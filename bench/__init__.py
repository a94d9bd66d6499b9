"""Figures that the project promises, measured as ratios or counts in one run. `make bench` prints them as Markdown."""
