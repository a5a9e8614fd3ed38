"""The package's version, for its parts, which do not import the package itself."""

__version__ = "0.1.0"
