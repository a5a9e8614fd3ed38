"""Finds, reads and writes image files. All code that opens or writes an image file is here.

`listing` finds files, `reading` reads files into pixels, `writing` writes pixels to files.
"""
