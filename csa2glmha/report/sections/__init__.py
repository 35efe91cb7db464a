"""The sections of a report, each made once from the record."""
