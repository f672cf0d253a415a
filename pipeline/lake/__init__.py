"""Settings, tables and errors aside, everything that touches storage: URIs, plan, parts, models."""
