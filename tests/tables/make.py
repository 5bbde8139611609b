#!/usr/bin/env python3
"""Makes Parquet files of the same three rows as users' libraries write them by default, and as they can.

Usage: python3 make.py, with pyarrow 26.0.1 and polars 2.1.0 installed.
"""

from pathlib import Path

import polars
import pyarrow
from pyarrow import parquet

HERE = Path(__file__).resolve().parent
ROWS = {
    "text": ["a keel", "a mast, «bent»", "a keel"],
    "tags": [["wood", "long"], [], ["wood"]],
    "age": [31, None, -4],
    "share": [0.25, 1e300, None],
    "north": [True, None, False],
    "port": ["Oslo", None, "Oslo"],
}

if __name__ == "__main__":
    table = pyarrow.table(ROWS)
    parquet.write_table(table, HERE / "pyarrow.parquet")
    other = {"compression": "zstd", "data_page_version": "2.0", "use_dictionary": False, "row_group_size": 2}
    parquet.write_table(table, HERE / "pyarrow_v2.parquet", **other)
    polars.DataFrame(ROWS).write_parquet(HERE / "polars.parquet")
