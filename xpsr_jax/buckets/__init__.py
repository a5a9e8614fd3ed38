"""Paths in buckets, gs:// and s3://, through fsspec's file systems. If these are not installed, it is a UserError."""
