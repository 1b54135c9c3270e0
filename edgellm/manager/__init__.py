"""The side that asks; imports no torch and holds no weights."""
