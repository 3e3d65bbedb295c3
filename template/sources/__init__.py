"""The dlt sources of this project."""
