"""LEARN one task after another: networks that expand (DEN)."""
