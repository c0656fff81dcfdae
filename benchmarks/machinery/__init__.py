"""What the rooms of all papers share.

| module | what |
|---|---|
| `jobs` | many jobs in processes, each finished one kept in a file; names of files by content |
| `results` | the file of a benchmark, with hardware, versions, command and date beside the numbers |
| `command` | the command line of a benchmark, and its tables on the terminal |
| `verdicts` | bootstrap intervals, and when a claim counts as reproduced |
| `papers` | what a room registers: presets, sections of the report, claims |
| `report_parts` | tables and figures in HTML |
| `turns` | paired timing of libraries in processes of their own |
"""

from benchmarks.machinery.command import main

__all__ = ["main"]
