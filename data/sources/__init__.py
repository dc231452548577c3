"""Sources of images beside a folder: archives, tables of paths, datasets in parquet files."""
