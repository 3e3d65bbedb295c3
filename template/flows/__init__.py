"""The Prefect flows of this project."""
