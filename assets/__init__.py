"""The stages as Dagster assets: one file per stage, each gated by audit-then-publish (publishing.py)."""
