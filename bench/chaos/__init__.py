"""Random faults under mixed load: every answer has to be the same as in an undisturbed run.

Usage: `python -m mlxfleet.bench.chaos --tiny llama [--mode tcp] [--faults 50] [--seed S]`
"""
