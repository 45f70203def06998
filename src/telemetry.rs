//! Every event: its record and its metric side by side, and where they go.
