"""Hostile HTTP: requests that are wrong in every way, beside good ones that have to be answered.

Usage: `python -m mlxfleet.bench.hostile [--requests 10000] [--seed S] [--only INDEX]`
"""
