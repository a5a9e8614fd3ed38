"""Paths in buckets, gs:// and s3://: through fsspec's file systems, without which they are one line of error."""
