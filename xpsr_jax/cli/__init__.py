"""The commands, one file each: arguments, one call, printed output. No other part of the package imports from here."""
