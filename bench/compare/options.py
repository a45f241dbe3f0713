"""The options of `mlxfleet bench compare`."""

DEFAULT_BLOCKS = 10
DEFAULT_CONFIDENCE = 0.99
