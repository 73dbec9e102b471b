"""`everydream index`: the images of a project as one Parquet file, made on this machine or on a Ray cluster."""
