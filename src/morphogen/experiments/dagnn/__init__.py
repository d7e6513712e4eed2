"""DagNN: neurons wired as a free graph without cycles."""
