"""What a study asks for before anything runs: its graph with identities, what is stale and why, what it will cost.

Import from the modules: `facts`, `lineage`, `staleness`, `plan`, `report_inputs`. Nothing is imported here, because the
Dagster code location needs `facts` alone and must load in a moment.
"""
