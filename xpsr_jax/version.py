"""The package's version, in a module that other modules can import without the whole package."""

__version__ = "0.1.0"
