"""The pages for reviewers and the HTTP API for pipelines: one process, read-only, on any storage URL.

Needs the extra ``web``. Nothing outside this package imports from the inside of it but the command line.
"""
