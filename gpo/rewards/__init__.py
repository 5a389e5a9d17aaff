"""The `gpo reward` verbs: checks, Ray workers and closing lines around the package `reward`."""
