"""The web page: `xpsr app`."""
