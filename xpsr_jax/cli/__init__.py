"""The commands, one file each: its arguments, one call, what is printed. Nothing else imports from here."""
