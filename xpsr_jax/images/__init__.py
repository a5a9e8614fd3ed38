"""Pictures in files: finding them, reading them, writing them. Everything that opens or writes a picture does it here.

`listing` finds files, `reading` makes pixels of them, `writing` makes files of pixels.
"""
