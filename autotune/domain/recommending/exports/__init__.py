"""A recommended deployment in the forms that are deployed: pure functions from data to text or data.

Nothing is put into a text by pasting: shell words are quoted, everything else is data that is dumped.
"""
